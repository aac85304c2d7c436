"""Where a WebSocket leads: the query of its address, and the token beside it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.datastructures import QueryParams

from serving.errors import InvalidRequest, NotAllowed
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import FITS, session_options

T = TypeVar("T")

PROTOCOL = "longtake.v1"
"""The subprotocol of the WebSocket; a client need not name it."""

TOKEN_PREFIX = "longtake.token."
"""Browsers send no headers with a WebSocket: the token comes as a second subprotocol, in URL-safe base64."""

OPTIONS = ("model", "seed", "height", "width", "fps", "ahead", "lease_s", "input", "fit", "noise_scale")
PLACES = ("session", "watch", "from", "take", "client_id", "command_id", "reattach")

FLAGS = {"0": False, "false": False, "1": True, "true": True}

INPUTS = {"none": False, "video": True}
"""Whether a session takes pictures."""

MAX_DIGITS = 20
MAX_FRAME = (1 << 63) - 1


@dataclass(frozen=True)
class Address:
    """A session to attach to, or None for a new one with `options`.

    `from_frame` is the first frame wanted, which counts for `take` only; None is the last that was shown. The ids
    are those of the protocol: all messages are `client_id`'s, and `command_id` is the opening of a new session.
    """

    session: str | None
    watch: bool
    from_frame: int | None
    take: int | None
    options: pb.SessionOptions
    client_id: str = ""
    command_id: str = ""
    reattach: bool = False

    @classmethod
    def of(cls, params: QueryParams) -> Address:
        """Read a query. Raises InvalidRequest, which names the parameter."""
        query = read_query(params, PLACES + OPTIONS)
        watch, session = _flag(query, "watch"), query.get("session") or None
        if watch and session is None:
            raise InvalidRequest("watch needs a session; name it as `session`")
        options = read_options({name: query[name] for name in OPTIONS if query.get(name)})
        ids = query.get("client_id", ""), query.get("command_id", "")
        from_frame, take = whole(query, "from", MAX_FRAME), whole(query, "take")
        return cls(session, watch, from_frame, take, options, *ids, _flag(query, "reattach"))

    def first_frame(self, session: pb.Session) -> int:
        """The frame to begin at: what was asked, or else what was seen last, as far as it is kept."""
        asked = self.from_frame if self.take in (None, session.take) else None
        wanted = max(session.shown_frame, 0) if asked is None else asked
        return max(wanted, session.oldest_frame)


def read_query(params: QueryParams, known: Sequence[str]) -> dict[str, str]:
    """The parameters of an address by name. Raises InvalidRequest for one that is not known, or comes twice."""
    texts: dict[str, str] = {}
    for name, text in params.multi_items():
        if name not in known:
            raise InvalidRequest(f"the parameter {name[:60]!r} is unknown; known: {', '.join(known)}")
        if name in texts:
            raise InvalidRequest(f"the parameter {name!r} comes twice; it must come once")
        texts[name] = text
    return texts


def read_options(texts: Mapping[str, str]) -> pb.SessionOptions:
    """Options of a session, each as a text. Raises InvalidRequest, which names the one that is none."""
    return session_options(
        model=texts.get("model", ""),
        seed=whole(texts, "seed"),
        height=whole(texts, "height") or 0,
        width=whole(texts, "width") or 0,
        fps=whole(texts, "fps"),
        ahead=whole(texts, "ahead"),
        lease_s=_number(texts, "lease_s"),
        restyles=bool(one_of(texts, "input", INPUTS)),
        fit=one_of(texts, "fit", {name: name for name in FITS}),
        noise_scale=_number(texts, "noise_scale"),
    )


def _flag(texts: Mapping[str, str], name: str) -> bool:
    return bool(one_of(texts, name, FLAGS))


def whole(texts: Mapping[str, str], name: str, most: int = 10**MAX_DIGITS) -> int | None:
    """A number from 0 to `most`, None where nothing is said. Raises InvalidRequest for anything else."""
    text = texts.get(name)
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise InvalidRequest(f"{name} is {text[:60]!r}; it must be a whole number from 0 on")
    if int(text) > most:
        raise InvalidRequest(f"{name} is {text}; it must be at most {most}")
    return int(text)


def _number(texts: Mapping[str, str], name: str) -> float | None:
    text = texts.get(name)
    if text is None or text == "":
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{name} is {text[:60]!r}; it must be a number") from None


def one_of(texts: Mapping[str, str], name: str, known: Mapping[str, T]) -> T | None:
    """What a parameter says, None where it says nothing. Raises InvalidRequest for what is not `known`."""
    text = texts.get(name)
    if text is None or text == "":
        return None
    if text not in known:
        raise InvalidRequest(f"{name} is {text[:60]!r}; known: {', '.join(known)}")
    return known[text]


def read_token(headers: Mapping[str, str], subprotocols: Sequence[str] = ()) -> str | None:
    """The token of a request, None where it carries none. Raises NotAllowed for one that cannot be read."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    if scheme:
        raise NotAllowed("the authorization must be `Bearer TOKEN`")
    for protocol in subprotocols:
        if protocol.startswith(TOKEN_PREFIX):
            return _decode(protocol.removeprefix(TOKEN_PREFIX))
    return None


def _decode(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise NotAllowed("the token in the subprotocol is not URL-safe base64 of UTF-8 text") from None

"""The first answers to requests that open something, or begin or end a recording, by the ids of who asked.

A manager keeps one. What another manager has answered it does not know: a session that is opened twice through two
of them has the same id (`session_id_of`), by which the register of owners lets one of the two be. It knows by what
name that one was opened, which says what was asked for (`attempt_of`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeVar

from google.protobuf.message import Message

from serving.background_tasks import wait_without_cancelling
from serving.errors import CommandIdReused, ReplicaLost, ServingError, Unforeseen
from serving.session.receipt_log import check_ids

T = TypeVar("T")

logger = logging.getLogger(__name__)

KEPT_S = 600.0
MOST_ANSWERS = 4096
MOST_BYTES = 64 << 20
"""Of answers that are kept: those of the caller who has most of them go first."""

LARGE = 1 << 18
"""Bytes from which on a request is digested in a thread."""

ABANDONED_S = 5.0
"""How long what is done goes on with nobody there to hear of it: clients that are there come back sooner."""

_SESSIONS = uuid.UUID("6ba5b0e2-3ad5-4f0c-9d0f-0c7c9c3f5a51")


class Identified(Protocol):
    """A request with the ids of who asks."""

    client_id: str
    command_id: str


class _Key(NamedTuple):
    caller: str
    client_id: str
    command_id: str


@dataclass(frozen=True)
class _Answer:
    """A refusal is a copy, without the traceback that holds a request and all that was done for it."""

    result: Any
    refusal: ServingError | None = None

    @classmethod
    async def of(cls, do: Callable[[], Awaitable[Any]]) -> _Answer:
        """What `do` returns or how it refuses. Raises what is no answer."""
        try:
            return cls(await do())
        except (ReplicaLost, Unforeseen):
            raise
        except ServingError as refusal:
            return cls(None, copy(refusal))

    def given(self) -> Any:
        """The result; raises the refusal."""
        if self.refusal is not None:
            raise copy(self.refusal)
        return self.result


@dataclass
class _Asked:
    content: bytes
    answer: asyncio.Task[_Answer]
    until: float
    waiting: int = 0
    nbytes: int = 0


class RequestLog:
    """Does what is asked for once, and answers whoever asks again, also while it is being done.

    Refusals are answers; what ended because a replica was lost, or by a fault, is not, and is tried again. `clock`
    is monotonic.
    """

    def __init__(
        self, kept_s: float = KEPT_S, most: int = MOST_ANSWERS, clock: Callable[[], float] = time.monotonic,
        abandoned_s: float = ABANDONED_S, most_bytes: int = MOST_BYTES,
    ) -> None:  # fmt: skip
        self._kept_s, self._most, self._clock, self._abandoned_s = kept_s, most, clock, abandoned_s
        self._most_bytes = most_bytes
        self._asked: OrderedDict[_Key, _Asked] = OrderedDict()
        self._held = Counter[str]()

    def __len__(self) -> int:
        return len(self._asked)

    async def once(self, caller: str, request: Identified, do: Callable[[], Awaitable[T]]) -> T:
        """The answer of `do`, or of the one before it that the same caller, client and command had.

        `do` goes on if who asks is cancelled, as it may be asked for again; where nobody does so within
        `abandoned_s` it is cancelled. Raises what `do` raises, InvalidRequest for ids that are too long, and
        CommandIdReused for the ids of another request.
        """
        check_ids(request.client_id, request.command_id)
        key = _Key(caller, request.client_id, request.command_id)
        if not (key.client_id and key.command_id):
            return await do()
        content = await content_of(request)
        self._forget()
        asked = self._asked.get(key)
        if asked is None:
            answer = asyncio.create_task(_Answer.of(do))
            asked = self._asked[key] = _Asked(content, answer, self._clock() + self._kept_s)
            answer.add_done_callback(lambda _: self._judge(key, asked))
        elif asked.content != content:
            raise CommandIdReused(
                f"the command id {key.command_id!r} was used before, for another request; give each its own"
            )
        asked.waiting += 1
        try:
            answered = await wait_without_cancelling(asked.answer)
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.answer.done():
                asyncio.get_running_loop().call_later(self._abandoned_s, self._give_up, key, asked)
        result: T = answered.given()
        return result

    def _give_up(self, key: _Key, asked: _Asked) -> None:
        """Nobody has come for an answer that was left alone."""
        if not asked.waiting and not asked.answer.done():
            asked.answer.cancel()
            self._drop(key, asked)

    def _judge(self, key: _Key, asked: _Asked) -> None:
        """Forget what was no answer."""
        failure = None if asked.answer.cancelled() else asked.answer.exception()
        if not asked.waiting and failure is not None and not isinstance(failure, ServingError):
            logger.error("a request failed that nobody waits for any more", exc_info=failure)
        if asked.answer.cancelled() or failure is not None:
            self._drop(key, asked)
        elif self._asked.get(key) is asked:
            result = asked.answer.result().result
            asked.nbytes = result.ByteSize() if isinstance(result, Message) else 0
            self._held[key.caller] += asked.nbytes
            self._bound_bytes()

    def _drop(self, key: _Key, asked: _Asked) -> None:
        if self._asked.get(key) is asked:
            self._held[key.caller] -= self._asked.pop(key).nbytes

    def _forget(self) -> None:
        """The oldest go; what is being done stays."""
        now, most = self._clock(), self._most - 1
        done = [key for key, asked in self._asked.items() if asked.answer.done()]
        for key in done:
            if self._asked[key].until > now and len(self._asked) <= most:
                return
            self._drop(key, self._asked[key])

    def _bound_bytes(self) -> None:
        while self._held.total() > self._most_bytes:
            ((heaviest, _),) = self._held.most_common(1)
            oldest = next(key for key, asked in self._asked.items() if key.caller == heaviest and asked.nbytes)
            self._drop(oldest, self._asked[oldest])


def session_id_of(caller: str, request: Identified) -> str:
    """The id of the session that a request opens: drawn at random, or the same again where the request is."""
    return request_name(caller, request) or str(uuid.uuid4())


async def attempt_of(request: Identified) -> str:
    """A name, never given before, for a try to open what a request asks for; with ids it says what that is."""
    name = uuid.uuid4().hex
    return f"{name}.{(await content_of(request)).hex()}" if request.client_id and request.command_id else name


def require_same(session_id: str, attempt: str, opened: str) -> None:
    """Raise CommandIdReused if a session was `opened` for another request than `attempt` is made for.

    Names that do not say what was asked for are another release's, or of sessions that came from elsewhere.
    """
    asked, before = attempt.partition(".")[2], opened.partition(".")[2]
    if asked and before and asked != before:
        raise CommandIdReused(
            f"the ids of the request were used before, for another one, which opened the session {session_id}; "
            "give each its own"
        )


def request_name(caller: str, request: Identified) -> str:
    """The same for the same request made again, whoever it is made to; empty where nobody can tell."""
    if not (request.client_id and request.command_id):
        return ""
    names = f"{len(caller)} {len(request.client_id)} {caller}{request.client_id}{request.command_id}"
    return str(uuid.uuid5(_SESSIONS, names))


async def content_of(request: Any) -> bytes:
    """A digest of the kind of a request and of all that it says."""
    assert isinstance(request, Message)
    return _digest(request) if request.ByteSize() < LARGE else await asyncio.to_thread(_digest, request)


def _digest(request: Message) -> bytes:
    kind = request.DESCRIPTOR.full_name.encode()
    return blake2b(kind + request.SerializeToString(deterministic=True), digest_size=16).digest()

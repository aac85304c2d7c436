"""Requests as a client sends them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from google.protobuf.descriptor import FieldDescriptor

from serving.errors import InvalidRequest
from serving.media.clips.picture_scaler import Fit
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue, Restyling, Transition, figure

APPLICATION_KEY, APPLICATION = "application", "longtake"
"""The metadata by which a client may say which of Ray Serve's applications it calls, and the server's name."""

P = ParamSpec("P")
T = TypeVar("T")

_INT32 = 1 << 31

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-_INT32, _INT32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}

FITS: dict[Fit, pb.PictureFit] = {
    "fill": pb.PICTURE_FIT_FILL,
    "fit": pb.PICTURE_FIT_WHOLE,
    "stretch": pb.PICTURE_FIT_STRETCH,
}


def message(kind: Callable[P, T], /, *args: P.args, **fields: P.kwargs) -> T:
    """A message of the protocol. Raises InvalidRequest, which names the field, for what none can carry."""
    try:
        return kind(*args, **fields)
    except ValueError as error:
        raise _not_carried(kind, fields) from error


def _not_carried(kind: Any, fields: Mapping[str, Any]) -> InvalidRequest:
    for name, value in fields.items():
        if isinstance(value, str):
            require_text(name, value)
        try:
            kind(**{name: value})
        except ValueError:
            least, most = _RANGES[kind.DESCRIPTOR.fields_by_name[name].cpp_type]
            return InvalidRequest(
                f"{name} is {figure(value)}, which no message can carry; it has {least} to {most}"
            )
    raise AssertionError(f"{kind} carries each of {fields}, and not all")


def require_text(name: str, text: str) -> None:
    """Raise InvalidRequest for half characters, which Python can have and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InvalidRequest(f"{name} contains {half!r}, half a character, which no message can carry") from None


def require_one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raise InvalidRequest for a word that has no meaning."""
    if value not in known:
        raise InvalidRequest(f"{name} is {value!r}; known: {', '.join(known)}")


def new_cue(
    prompt: str | Blend,
    frame: int | None = None,
    transition: Transition | None = None,
    restyling: Restyling | None = None,
) -> pb.Cue:
    """A cue to be scheduled; a `frame` of None is now.

    Raises TimelineError for a prompt that cannot be, and InvalidRequest for a frame that no message can carry.
    """
    blend = Blend.of(prompt) if isinstance(prompt, str) else prompt
    parts = [pb.WeightedPrompt(text=text, weight=weight) for text, weight in blend.parts]
    cue = message(pb.Cue, frame=frame, prompts=parts)
    if transition is not None:
        slerp = transition.method == "slerp"
        cue.transition.blocks = transition.blocks
        cue.transition.method = pb.TRANSITION_METHOD_SLERP if slerp else pb.TRANSITION_METHOD_LINEAR
    if restyling is not None:
        cue.restyling.CopyFrom(write_restyling(restyling))
    return cue


def write_restyling(restyling: Restyling) -> pb.Restyling:
    """The `Restyling` message."""
    return pb.Restyling(**asdict(restyling))


def new_cues(cues: Iterable[Cue]) -> list[pb.Cue]:
    """The cues of a timeline, to be scheduled."""
    return [new_cue(cue.blend, cue.frame, cue.transition, cue.restyling) for cue in cues]


def session_options(
    *,
    model: str = "",
    seed: int | None = None,
    height: int = 0,
    width: int = 0,
    fps: int | None = None,
    ahead: int | None = None,
    lease_s: float | None = None,
    restyles: bool = False,
    fit: Fit | None = None,
    noise_scale: float | None = None,
) -> pb.SessionOptions:
    """How a session is to be made. What is not said is left to the server; one that `restyles` takes pictures.

    Raises InvalidRequest for what no message can carry, by its name; a server allows less.
    """
    if lease_s is not None and not -_INT32 <= lease_s <= _INT32:
        known = f"it has {-_INT32} to {_INT32}"
        raise InvalidRequest(f"lease_s is {figure(lease_s)}, which no message can carry; {known}")
    if fit is not None:
        require_one_of("fit", fit, FITS)
    lease = None if lease_s is None else timedelta(seconds=lease_s)
    return message(
        pb.SessionOptions, model=model, seed=seed, height=height, width=width, fps=fps, ahead=ahead, lease=lease,
        input=pb.INPUT_KIND_VIDEO if restyles else pb.INPUT_KIND_UNSPECIFIED,
        fit=pb.PICTURE_FIT_UNSPECIFIED if fit is None else FITS[fit],
        noise_scale=noise_scale,
    )  # fmt: skip

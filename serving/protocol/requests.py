"""Requests as a client sends them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta

from serving.errors import InvalidRequest
from serving.media.clips.picture_scaler import Fit
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue, Restyling, Transition, check_whole, figure

APPLICATION_KEY, APPLICATION = "application", "longtake"
"""The metadata by which a client may say which of Ray Serve's applications it calls, and the server's name."""

_INT32 = 1 << 31

FITS: dict[Fit, pb.PictureFit] = {
    "fill": pb.PICTURE_FIT_FILL,
    "fit": pb.PICTURE_FIT_WHOLE,
    "stretch": pb.PICTURE_FIT_STRETCH,
}


def new_cue(
    prompt: str | Blend,
    frame: int | None = None,
    transition: Transition | None = None,
    restyling: Restyling | None = None,
) -> pb.Cue:
    """A cue to be scheduled; a `frame` of None is now.

    Raises TimelineError for a prompt that cannot be, and InvalidRequest for a frame that no message can carry.
    """
    _require_carried("frame", frame, -(1 << 63), (1 << 63) - 1)
    blend = Blend.of(prompt) if isinstance(prompt, str) else prompt
    parts = [pb.WeightedPrompt(text=text, weight=weight) for text, weight in blend.parts]
    cue = pb.Cue(frame=frame, prompts=parts)
    if transition is not None:
        slerp = transition.method == "slerp"
        cue.transition.blocks = transition.blocks
        cue.transition.method = pb.TRANSITION_METHOD_SLERP if slerp else pb.TRANSITION_METHOD_LINEAR
    if restyling is not None:
        cue.restyling.CopyFrom(pb.Restyling(**asdict(restyling)))
    return cue


def _require_carried(name: str, number: float | None, least: int, most: int) -> None:
    if number is not None and not least <= number <= most:
        raise InvalidRequest(f"{name} is {figure(number)}, which no message can carry; it has {least} to {most}")


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

    Raises InvalidRequest or TimelineError for what no message can carry, by its name; a server allows less.
    """
    check_whole(model, "model")
    _require_carried("seed", seed, 0, (1 << 64) - 1)
    for name, number in (("height", height), ("width", width), ("fps", fps), ("ahead", ahead)):
        _require_carried(name, number, -_INT32, _INT32 - 1)
    _require_carried("lease_s", lease_s, -_INT32, _INT32)
    lease = None if lease_s is None else timedelta(seconds=lease_s)
    return pb.SessionOptions(
        model=model, seed=seed, height=height, width=width, fps=fps, ahead=ahead, lease=lease,
        input=pb.INPUT_KIND_VIDEO if restyles else pb.INPUT_KIND_UNSPECIFIED,
        fit=pb.PICTURE_FIT_UNSPECIFIED if fit is None else FITS[fit],
        noise_scale=noise_scale,
    )  # fmt: skip

"""Requests as a client sends them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue, Transition


def new_cue(prompt: str | Blend, frame: int | None = None, transition: Transition | None = None) -> pb.Cue:
    """A cue to be scheduled; a `frame` of None is now. Raises TimelineError for a prompt that cannot be."""
    blend = Blend.of(prompt) if isinstance(prompt, str) else prompt
    parts = [pb.WeightedPrompt(text=text, weight=weight) for text, weight in blend.parts]
    cue = pb.Cue(frame=frame, prompts=parts)
    if transition is not None:
        slerp = transition.method == "slerp"
        cue.transition.blocks = transition.blocks
        cue.transition.method = pb.TRANSITION_METHOD_SLERP if slerp else pb.TRANSITION_METHOD_LINEAR
    return cue


def new_cues(cues: Iterable[Cue]) -> list[pb.Cue]:
    """The cues of a timeline, to be scheduled."""
    return [new_cue(cue.blend, cue.frame, cue.transition) for cue in cues]


def session_options(
    *,
    model: str = "",
    seed: int | None = None,
    height: int = 0,
    width: int = 0,
    fps: int | None = None,
    ahead: int | None = None,
    lease_s: float | None = None,
) -> pb.SessionOptions:
    """How a session is to be made. What is not said is left to the server.

    Raises ValueError or OverflowError for a number that the protocol cannot carry.
    """
    lease = None if lease_s is None else timedelta(seconds=lease_s)
    return pb.SessionOptions(model=model, seed=seed, height=height, width=width, fps=fps, ahead=ahead, lease=lease)

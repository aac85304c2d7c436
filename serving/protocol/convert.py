"""Between the messages of the protocol and the values that sessions are made of."""

from __future__ import annotations

from collections.abc import Sequence

from serving.errors import InvalidRequest, LimitReached, TimelineError
from serving.media.clips.picture_scaler import Fit
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import FITS, new_cue
from serving.session.cue_queue import MAX_PENDING
from serving.session.pacing import Pace
from serving.session.state_machine import Applied, Receipt
from serving.timeline.cue import Blend, Cue, Method, Restyling, Transition, check_count

METHODS: dict[int, Method] = {
    pb.TRANSITION_METHOD_UNSPECIFIED: "linear",
    pb.TRANSITION_METHOD_LINEAR: "linear",
    pb.TRANSITION_METHOD_SLERP: "slerp",
}


def read_fit(fit: int) -> Fit:
    """How pictures are brought to a session's size. Raises InvalidRequest for what is unknown."""
    if fit == pb.PICTURE_FIT_UNSPECIFIED:
        return "fill"
    for name, number in FITS.items():
        if number == fit:
            return name
    raise InvalidRequest(f"fit {fit} is unknown; known: 1 (fill), 2 (whole), 3 (stretch)")


def read_blend(cue: pb.Cue) -> Blend:
    """What a cue shows. Raises TimelineError for prompts or weights that cannot be used."""
    check_count(len(cue.prompts), "prompts")
    return Blend(tuple((part.text, weight_of(part)) for part in cue.prompts))


def weight_of(part: pb.WeightedPrompt) -> float:
    """The weight of a prompt in a blend."""
    return part.weight if part.HasField("weight") else 1.0


def read_transition(cue: pb.Cue) -> Transition | None:
    """How a cue comes into force. Raises TimelineError for a transition that cannot be."""
    if not cue.HasField("transition"):
        return None
    method = cue.transition.method
    if method not in METHODS:
        raise TimelineError("transition.method", f"{method} is unknown; known: 1 (linear), 2 (slerp)")
    return Transition(cue.transition.blocks, METHODS[method])


def read_restyling(cue: pb.Cue) -> Restyling | None:
    """How pictures are restyled from a cue on. Raises TimelineError for what cannot be."""
    return told_restyling(cue.restyling) if cue.HasField("restyling") else None


def told_restyling(told: pb.Restyling) -> Restyling:
    """How pictures are restyled. Raises TimelineError for what cannot be."""
    return Restyling(
        told.noise_scale if told.HasField("noise_scale") else None,
        told.follows_motion if told.HasField("follows_motion") else None,
        told.renews_sink,
        told.cuts,
    )


def read_cue(cue: pb.Cue) -> Cue:
    """A cue with a frame. Raises TimelineError."""
    return Cue(cue.frame, read_blend(cue), read_transition(cue), read_restyling(cue))


def write_cue(cue: Cue) -> pb.Cue:
    """The `Cue` message that `read_cue` reads."""
    return new_cue(cue.blend, cue.frame, cue.transition, cue.restyling)


def write_applied(applied: Applied) -> pb.AppliedCue:
    """The `AppliedCue` message: the cue, and the frame at which it really began."""
    return pb.AppliedCue(cue=write_cue(applied.cue), frame=applied.frame)


def write_receipt(receipt: Receipt, *, replicated: bool = False, repeated: bool = False) -> pb.Receipt:
    """The `Receipt` message; `repeated`: the command was sent before, `replicated`: a standby has it too."""
    return pb.Receipt(
        command_id=receipt.command_id,
        command=pb.CommandKind.Name(receipt.command.value),
        stage=pb.ReceiptStage.Name(receipt.stage.value),
        frame=receipt.frame,
        cue_frame=receipt.cue_frame,
        replicated=replicated,
        repeated=repeated,
    )


def lora_marks(provenance: pb.Provenance) -> tuple[str, ...]:
    """The LoRAs that change something, each in words that are the same only for the same one."""
    return tuple(f"{lora.weight!r} of {lora.sha256}" for lora in provenance.loras if lora.weight)


def read_pace(options: pb.SessionOptions, lease_s: float) -> Pace:
    """How a session is paced; `lease_s` where nothing is said. Raises InvalidRequest for what cannot be."""
    asked = options.lease
    lease = asked.seconds + asked.nanos / 1e9 if options.HasField("lease") else lease_s
    return Pace(
        fps=options.fps if options.HasField("fps") else Pace.fps,
        ahead=options.ahead if options.HasField("ahead") else Pace.ahead,
        lease_s=lease,
    )


def require_bytes(what: str, nbytes: int, most: int) -> None:
    """Raise LimitReached if there are more than `most` of them."""
    if nbytes > most:
        raise LimitReached(f"{what} has {nbytes} bytes; at most {most} are taken")


def read_cues(cues: Sequence[pb.Cue]) -> tuple[Cue, ...]:
    """Cues that come with a request, each with a frame.

    Raises TimelineError that names the cue, and LimitReached for more of them than may be pending.
    """
    if len(cues) > MAX_PENDING:
        raise LimitReached(f"{len(cues)} cues come with the request; at most {MAX_PENDING} can be pending")
    read = []
    for number, cue in enumerate(cues):
        if not cue.HasField("frame"):
            raise InvalidRequest(f"cues[{number}] has no frame; before the start `now` is frame 0, say so")
        try:
            read.append(read_cue(cue))
        except TimelineError as error:
            raise error.within(f"cues[{number}]") from None
    return tuple(read)

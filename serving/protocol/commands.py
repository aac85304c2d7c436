"""Commands of the protocol, applied to a session's logic: each once, however often it comes."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from serving.errors import ControllerReplaced, InvalidRequest, ServingError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_blend, read_restyling, read_transition, told_restyling
from serving.protocol.picture_queue import MOST_BYTES as MOST_QUEUED_BYTES
from serving.session.state_machine import Session
from serving.session.types import Receipt, Refusal

MOST_BYTES = 1 << 20
"""Of a command that is no picture; the largest blend of prompts has six tenths of it."""

MOST_PICTURE_BYTES = 8 << 20
"""Of one picture."""

PICTURE_FORMATS = set(pb.PictureFormat.values()) - {pb.PICTURE_FORMAT_UNSPECIFIED}


class Answer(NamedTuple):
    """The receipts of a command, its own first; or the first answer again, alone, to one that was `repeated`."""

    receipts: tuple[Receipt, ...]
    repeated: bool = False


def check_size(command: pb.Command) -> None:
    """Raise InvalidRequest for a command that takes too long to be looked at."""
    most = MOST_QUEUED_BYTES if command.HasField("picture") else MOST_BYTES
    if (nbytes := command.ByteSize()) > most:
        raise InvalidRequest(f"the command has {nbytes} bytes; at most {most} are read")


def check_picture(picture: pb.Picture) -> None:
    """Raise InvalidRequest for an unknown format, and for too many bytes, or none."""
    if picture.format not in PICTURE_FORMATS:
        raise InvalidRequest(f"picture format {picture.format} is unknown; known: 1 (JPEG), 2 (PNG), 3 (H.264)")
    if not 0 < len(picture.data) <= MOST_PICTURE_BYTES:
        raise InvalidRequest(f"a picture has {len(picture.data)} bytes; 1 to {MOST_PICTURE_BYTES} are taken")


def handle(logic: Session, command: pb.Command, now: float, *, steers: bool = True) -> Answer:
    """Apply a command, and remember its answer; one that was answered before changes nothing.

    `steers` is false for what comes on the stream of a controller that has been replaced. Raises the SessionError
    or TimelineError with which the command is refused, or was the first time.
    """
    if (before := first_answer(logic, command)) is not None:
        return before
    try:
        if not steers:
            raise ControllerReplaced("another controller steers the session now; attach again to take it over")
        answer = Answer(apply_command(logic, command, now))
    except ServingError as error:
        _remember(logic, command, Refusal.of(error))
        raise
    _remember(logic, command, answer.receipts[0])
    return answer


def first_answer(logic: Session, command: pb.Command) -> Answer | None:
    """The answer that a command had before; None if it is new. Raises the error with which it was refused."""
    found = logic.receipts.find(command.client_id, command.id, content_of(command))
    if isinstance(found, Refusal):
        raise found.error()
    return None if found is None else Answer((found,), repeated=True)


def content_of(command: pb.Command) -> bytes:
    """A digest of what is asked for, without who asks."""
    content = pb.Command()
    content.CopyFrom(command)
    content.ClearField("id")
    content.ClearField("client_id")
    return blake2b(content.SerializeToString(deterministic=True), digest_size=16).digest()


def _remember(logic: Session, command: pb.Command, answer: Receipt | Refusal) -> None:
    logic.receipts.add(command.client_id, command.id, content_of(command), answer)


def apply_command(logic: Session, command: pb.Command, now: float) -> tuple[Receipt, ...]:
    """The receipts of a command, its own first. Raises SessionError or TimelineError if it is refused."""
    name, action = command.id, command.WhichOneof("action")
    match action:
        case "schedule_prompt":
            cue = command.schedule_prompt
            frame = cue.frame if cue.HasField("frame") else None
            return logic.schedule(read_blend(cue), frame, read_transition(cue), name, now, read_restyling(cue))
        case "remove_prompt":
            return logic.remove(command.remove_prompt.frame, name, now)
        case "move_prompt":
            return logic.move(command.move_prompt.frame, command.move_prompt.to_frame, name, now)
        case "start":
            return logic.start(name, now)
        case "pause":
            return logic.pause(command.pause.frame if command.pause.HasField("frame") else None, name, now)
        case "resume":
            return logic.resume(name, now)
        case "reset":
            return logic.reset(name, now)
        case "cut":
            return logic.cut(name, now)
        case "restyle":
            return logic.restyle(told_restyling(command.restyle), name, now)
        case _:
            told = "no action, or is no message that can be read" if action is None else f"the action {action}"
            raise InvalidRequest(f"command {name!r} has {told}; it cannot be sent here")

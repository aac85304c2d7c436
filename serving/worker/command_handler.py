"""Commands of the protocol, done to a session's logic."""

from __future__ import annotations

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_blend, read_transition
from serving.session.state_machine import Receipt, Session


def apply_command(logic: Session, command: pb.Command, now: float) -> tuple[Receipt, ...]:
    """The receipts of a command, its own first. Raises SessionError or TimelineError if it is refused."""
    name, action = command.id, command.WhichOneof("action")
    match action:
        case "schedule_prompt":
            cue = command.schedule_prompt
            frame = cue.frame if cue.HasField("frame") else None
            return logic.schedule(read_blend(cue), frame, read_transition(cue), name, now)
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
        case _:
            raise InvalidRequest(f"command {name!r} has the action {action}; it cannot be sent here")

"""Commands as a client sends them, and what a session shows of one whose answer was lost."""

from __future__ import annotations

from dataclasses import dataclass

from serving.pb.longtake.v1 import sessions_pb2 as pb


@dataclass(frozen=True)
class Sent:
    """A command that has no answer yet, and how the session stood when it was sent."""

    command: pb.Command
    take: int
    next_frame: int

    def answer(self, session: pb.Session) -> pb.Receipt | None:
        """The receipt that was lost with a stream, if `session` shows that the command was taken; else None.

        For a cue that is still pending, `frame` is the one it is scheduled at.
        """
        answers = {
            "schedule_prompt": self._scheduled,
            "remove_prompt": self._removed,
            "move_prompt": self._moved,
            "start": lambda session: _stands(session, pb.SESSION_STATE_RUNNING, pb.SESSION_STATE_PAUSED),
            "pause": lambda session: _stands(session, pb.SESSION_STATE_PAUSED),
            "resume": lambda session: _stands(session, pb.SESSION_STATE_RUNNING),
            "reset": self._reset,
        }
        action = self.command.WhichOneof("action")
        receipt = answers[action](session) if action in answers else None
        if receipt is not None:
            receipt.command_id, receipt.stage = self.command.id, pb.RECEIPT_STAGE_ACCEPTED
            receipt.command = KINDS[action]
        return receipt

    def _scheduled(self, session: pb.Session) -> pb.Receipt | None:
        cue = self.command.schedule_prompt
        for applied in session.applied:
            if self._is(applied.cue, cue):
                return pb.Receipt(frame=applied.frame, cue_frame=applied.cue.frame)
        for pending in session.pending:
            if self._is(pending, cue):
                return pb.Receipt(frame=pending.frame, cue_frame=pending.frame)
        return None

    def _is(self, found: pb.Cue, sent: pb.Cue) -> bool:
        """Whether a cue of the session is the one that was sent. One that meant now was given a frame there."""
        same = [part.text for part in found.prompts] == [part.text for part in sent.prompts]
        return same and (found.frame == sent.frame if sent.HasField("frame") else found.frame >= self.next_frame)

    def _removed(self, session: pb.Session) -> pb.Receipt | None:
        frame = self.command.remove_prompt.frame
        known = {cue.frame for cue in session.pending} | {applied.cue.frame for applied in session.applied}
        return None if frame in known else pb.Receipt(frame=session.next_frame, cue_frame=frame)

    def _moved(self, session: pb.Session) -> pb.Receipt | None:
        move, pending = self.command.move_prompt, {cue.frame for cue in session.pending}
        if move.to_frame not in pending or move.frame in pending:
            return None
        return pb.Receipt(frame=move.to_frame, cue_frame=move.to_frame)

    def _reset(self, session: pb.Session) -> pb.Receipt | None:
        return pb.Receipt() if session.take > self.take else None


KINDS: dict[str | None, pb.CommandKind] = {
    "attach": pb.COMMAND_KIND_ATTACH,
    "schedule_prompt": pb.COMMAND_KIND_SCHEDULE_PROMPT,
    "remove_prompt": pb.COMMAND_KIND_REMOVE_PROMPT,
    "move_prompt": pb.COMMAND_KIND_MOVE_PROMPT,
    "start": pb.COMMAND_KIND_START,
    "pause": pb.COMMAND_KIND_PAUSE,
    "resume": pb.COMMAND_KIND_RESUME,
    "reset": pb.COMMAND_KIND_RESET,
}


def _stands(session: pb.Session, *states: int) -> pb.Receipt | None:
    return pb.Receipt(frame=session.shown_frame + 1) if session.state in states else None

"""What a session knows of its recordings. The files are written elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from serving.errors import LimitReached, WrongState


class RecordingPhase(Enum):
    """How far a recording is: `ENDED` by itself, and nobody has asked for it to be stopped."""

    NONE = "none"
    WRITTEN = "written"
    ENDED = "ended"
    STOPPED = "stopped"


@dataclass(frozen=True)
class RecordingMark:
    """The last recording of a session.

    `asked_by` names the request that began or stopped it, and is empty where nobody asks again. `failure` says why
    it has ended by itself, and is empty where that is as it should be.
    """

    name: str = ""
    phase: RecordingPhase = RecordingPhase.NONE
    asked_by: str = ""
    failure: str = ""

    @property
    def written(self) -> str:
        """The name of the one that is being written; empty if there is none."""
        return self.name if self.phase is RecordingPhase.WRITTEN else ""

    def begun(self, name: str, asked_by: str) -> RecordingMark:
        """Another one begins; or the same, where its request is made again. Raises WrongState over another."""
        if self.written:
            if self._is_again(asked_by):
                return self
            raise WrongState(f"the session is being recorded as {self.name}; stop that first")
        return RecordingMark(name, RecordingPhase.WRITTEN, asked_by)

    def stopped(self, asked_by: str) -> RecordingMark:
        """It is stopped. Raises WrongState if there is none, and LimitReached if it has failed."""
        if self.phase is RecordingPhase.STOPPED and self._is_again(asked_by):
            return self
        if self.phase not in (RecordingPhase.WRITTEN, RecordingPhase.ENDED):
            raise WrongState("the session is not being recorded; start a recording first")
        if self.failure:
            raise LimitReached(self.failure)
        return replace(self, phase=RecordingPhase.STOPPED, asked_by=asked_by)

    def ended(self, name: str, failure: str) -> RecordingMark:
        """Its writer writes no more of it."""
        return replace(self, phase=RecordingPhase.ENDED, failure=failure) if self.written == name else self

    def _is_again(self, asked_by: str) -> bool:
        return bool(asked_by) and asked_by == self.asked_by


NO_RECORDING = RecordingMark()

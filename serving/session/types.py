"""What a session's logic says and remembers: receipts, cues, plans, and a record to go on from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from engines.config.geometry import BlockLengths
from serving.errors import ServingError
from serving.session.pacing import Pace
from serving.timeline.cue import Cue
from serving.timeline.schedule import Step


class State(Enum):
    """Where a session is in its life; numbers are the protocol's."""

    CREATED = 1
    READY = 2
    RUNNING = 3
    PAUSED = 4
    ENDED = 5


class CommandKind(Enum):
    """What a receipt is about; numbers are the protocol's."""

    SCHEDULE_PROMPT = 1
    REMOVE_PROMPT = 2
    MOVE_PROMPT = 3
    START = 4
    PAUSE = 5
    RESUME = 6
    RESET = 7
    ATTACH = 8
    SHOWN = 9
    PICTURE = 10
    END_INPUT = 11
    CUT = 12
    RESTYLE = 13


class Stage(Enum):
    """How far a command has come; numbers are the protocol's."""

    ACCEPTED = 1
    APPLIED = 2
    REFUSED = 3
    DROPPED = 4


class Waiting(Enum):
    """What the next block of a running session waits for; numbers are the protocol's."""

    UNSPECIFIED = 0
    PROMPT = 1
    SHOWN = 2
    VIEWER = 3
    SERVER = 4
    INPUT = 6


@dataclass(frozen=True)
class Receipt:
    """An answer to a command: it takes or took effect at `frame`. `cue_frame` is where its cue is scheduled."""

    command_id: str
    command: CommandKind
    stage: Stage
    frame: int
    cue_frame: int = 0


@dataclass(frozen=True)
class Refusal:
    """An error that a command was refused with, as plain data."""

    kind: type[ServingError]
    arguments: tuple[str | float | None, ...]

    @classmethod
    def of(cls, error: ServingError) -> Refusal:
        """To be kept."""
        plain = (value if isinstance(value, float | None) else str(value) for value in error.args)
        return cls(type(error), tuple(plain))

    def error(self) -> ServingError:
        """To be raised again."""
        return self.kind(*self.arguments)


@dataclass(frozen=True)
class LoggedReceipt:
    """The answer to a command of `client_id`; `content` is a digest of what was asked for."""

    client_id: str
    command_id: str
    content: bytes
    answer: Receipt | Refusal


@dataclass(frozen=True)
class Pending:
    """A cue that has not applied yet, and the command that scheduled it."""

    cue: Cue
    command_id: str


@dataclass(frozen=True)
class Applied:
    """A cue that applied with `block`, whose first frame is `frame`.

    `step` is the number of its first step, as `timeline.schedule` counts those of all cues before it.
    """

    cue: Cue
    block: int
    frame: int
    command_id: str
    step: int = 0


PAGE = 128
"""Entries of the log of applied cues that are kept, and written, together."""


def tail_start(count: int) -> int:
    """With which entry the tail of a log of `count` begins: a page, and what there is of the next one."""
    return max((count - 1) // PAGE - 1, 0) * PAGE


@dataclass(frozen=True)
class AppliedTail:
    """The end of a log of applied cues: those from number `first` on."""

    first: int = 0
    entries: tuple[Applied, ...] = ()

    @property
    def count(self) -> int:
        """Of the whole log."""
        return self.first + len(self.entries)


@dataclass(frozen=True)
class BlockPlan:
    """A block that has been begun: its frames, the prompt that comes into force with it, and whom to tell."""

    block: int
    first_frame: int
    end_frame: int
    step: Step | None
    receipts: tuple[Receipt, ...]
    applied: Applied | None


@dataclass(frozen=True)
class SessionRecord:
    """A session's logic as plain data.

    `shown` is the last frame its viewer saw, `receipts` are the first answers to its last commands, and
    `controller` is the client that steers it, empty before the first. `seq` counts the changes that were told.
    A paused one may be `suspended`: it has no slot. Of the log of applied cues it has the end, so that its size
    does not grow with the session.
    """

    pace: Pace
    state: State
    take: int
    next_block: int
    delivered_frames: int
    shown: int
    pending: tuple[Pending, ...]
    applied: AppliedTail
    receipts: tuple[LoggedReceipt, ...] = ()
    controller: str = ""
    seq: int = 0
    suspended: bool = False

    @classmethod
    def restored(
        cls, pace: Pace, applied: AppliedTail, pending: Sequence[Cue], next_frame: int, lengths: BlockLengths
    ) -> SessionRecord:
        """A session that was saved before `next_frame`: paused there, or at its beginning."""
        blocks = lengths.block_at(next_frame)
        ready = any(cue.frame == 0 for cue in pending)
        at_start = State.READY if ready else State.CREATED
        return cls(
            pace, State.PAUSED if blocks else at_start, 0, blocks, next_frame, next_frame - 1,
            tuple(Pending(cue, "") for cue in pending), applied,
        )  # fmt: skip

"""The logic of a session: commands and a clock in, receipts and plans of blocks out. No tensors, no network."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from engines.config.geometry import FRAMES_PER_SECOND, TEMPORAL_FACTOR, BlockLengths
from serving.errors import FrameOutOfRange, InvalidRequest, LimitReached, SessionNotFound, WrongState
from serving.session.pacing import UNREPORTED_BLOCKS, Pace, Position
from serving.session.receipt_log import ReceiptLog
from serving.session.types import Applied, BlockPlan, CommandKind, Pending, Receipt, SessionRecord, Stage, State
from serving.timeline.cue import Blend, Cue, Transition
from serving.timeline.schedule import Step
from serving.timeline.timeline import MAX_CUES

__all__ = [
    "Applied", "BlockPlan", "CommandKind", "Pending", "Receipt", "Session", "SessionRecord", "Stage", "State",
]  # fmt: skip

LAST_FRAME = (1 << 53) - 1
"""The largest number that every client can hold exactly."""


class _Present(NamedTuple):
    """The cue in force: the number of the step it began from, and how many of its steps have been made."""

    cue: Cue
    source: int
    made: int


class Session:
    """One session. Every method takes the time `now` in seconds; a command that raises has changed nothing.

    Commands return their receipt first, then those of cues that they have dropped.
    """

    def __init__(self, pace: Pace, blocks: BlockLengths, now: float) -> None:
        self.pace = pace
        self.blocks = blocks
        self.viewers = 0
        self.receipts = ReceiptLog()
        self.controller = ""
        self.seq = 0
        self._seen = now
        self._begin_take(0, now)

    @classmethod
    def of(cls, record: SessionRecord, blocks: BlockLengths, now: float) -> Session:
        """A session that goes on from a record, without a viewer yet."""
        session = cls(record.pace, blocks, now)
        session.state, session.take = record.state, record.take
        session.next_block, session.delivered_frames = record.next_block, record.delivered_frames
        session._pending = {pending.cue.frame: pending for pending in record.pending}
        session._frames = sorted(session._pending)
        session._applied = list(record.applied)
        session._position = Position(record.pace, max(record.shown, 0))
        session._paused_at = record.shown
        session.receipts, session.controller = ReceiptLog(record.receipts), record.controller
        session.seq = record.seq
        session._walk_steps()
        return session

    def _begin_take(self, take: int, now: float) -> None:
        self.state = State.CREATED
        self.take = take
        self.next_block = 0
        self.delivered_frames = 0
        self._pending: dict[int, Pending] = {}
        self._frames: list[int] = []
        self._listed: tuple[Pending, ...] | None = None
        self._applied: list[Applied] = []
        self._present: _Present | None = None
        self._steps = 0
        self._position = Position(self.pace)
        self._paused_at = -1
        self._waiting_since = now

    # How it stands

    @property
    def pending(self) -> tuple[Pending, ...]:
        """Cues that have not applied yet, by frame."""
        if self._listed is None:
            self._listed = tuple(self._pending[frame] for frame in self._frames)
        return self._listed

    @property
    def applied(self) -> tuple[Applied, ...]:
        """Cues that have applied, in order."""
        return tuple(self._applied)

    @property
    def prompt(self) -> str:
        """The text in force; empty before the first."""
        return self._applied[-1].cue.blend.text if self._applied else ""

    @property
    def earliest_frame(self) -> int:
        """The first frame of the next block: the earliest at which a cue can apply."""
        return self.blocks.pixel_frames(self.next_block)

    def shown_frame(self, now: float) -> int:
        """The last frame that the viewer has seen, as far as is known; -1 before the first."""
        if self.state is State.PAUSED:
            return self._paused_at
        return self._position.shown(self.delivered_frames, now)

    # Commands

    def schedule(
        self, blend: Blend, frame: int | None, transition: Transition | None, command_id: str, now: float
    ) -> tuple[Receipt, ...]:
        """Schedule a cue, over one that is on its frame; without a frame, the earliest possible."""
        self._require_alive()
        at = self.earliest_frame if frame is None else frame
        cue = Cue(at, blend, transition)
        self._require_ahead(at)
        dropped = self._pending.get(at)
        if dropped is None and len(self._pending) + len(self._applied) >= MAX_CUES:
            raise LimitReached(f"the session has {MAX_CUES} cues, which is all it may have; remove one")
        self._put(Pending(cue, command_id))
        self.renew(now)
        accepted = Receipt(command_id, CommandKind.SCHEDULE_PROMPT, Stage.ACCEPTED, self._applies_at(at), at)
        return (accepted, *self._dropped([] if dropped is None else [dropped]))

    def remove(self, frame: int, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Take a pending cue away."""
        pending = self._take_out(frame)
        self.renew(now)
        removed = Receipt(command_id, CommandKind.REMOVE_PROMPT, Stage.ACCEPTED, self._applies_at(frame), frame)
        return (removed, *self._dropped([pending]))

    def move(self, frame: int, to: int, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Move a pending cue, over one that is there already."""
        self._require_pending(frame)
        cue = replace(self._pending[frame].cue, frame=to)
        self._require_ahead(to)
        if frame == to:
            self.renew(now)
            return (Receipt(command_id, CommandKind.MOVE_PROMPT, Stage.ACCEPTED, self._applies_at(to), to),)
        moved = self._take_out(frame)
        dropped = self._pending.get(to)
        self._put(Pending(cue, moved.command_id))
        self.renew(now)
        accepted = Receipt(command_id, CommandKind.MOVE_PROMPT, Stage.ACCEPTED, self._applies_at(to), to)
        return (accepted, *self._dropped([] if dropped is None else [dropped]))

    def start(self, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Let blocks be made."""
        self._require_alive()
        if self.state is State.CREATED:
            raise WrongState("no cue is at frame 0, where the video begins; schedule one, then start")
        if self.state is not State.READY:
            raise WrongState(f"the session is {self.state.name.lower()}: it has been started; reset begins anew")
        self.state, self._waiting_since = State.RUNNING, now
        self.renew(now)
        return (Receipt(command_id, CommandKind.START, Stage.ACCEPTED, 0),)

    def pause(self, frame: int | None, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Stop at the frame that was seen last."""
        self._require_state(State.RUNNING, "pause")
        at = self.shown_frame(now) if frame is None else frame
        if not -1 <= at < max(self.delivered_frames, 0):
            raise FrameOutOfRange(
                f"frame {at} cannot have been seen; the last one made is {self.delivered_frames - 1}"
            )
        self.state, self._paused_at = State.PAUSED, at
        self._position.go_on_from(max(at, 0), now)
        self._run_clock(now)
        self.renew(now)
        return (Receipt(command_id, CommandKind.PAUSE, Stage.ACCEPTED, at),)

    def resume(self, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Go on where the viewer stopped."""
        self._require_state(State.PAUSED, "resume")
        self.state, self._waiting_since = State.RUNNING, now
        self._position.go_on_from(max(self._paused_at, 0), now)
        self._run_clock(now)
        self.renew(now)
        return (Receipt(command_id, CommandKind.RESUME, Stage.ACCEPTED, self._paused_at + 1),)

    def reset(self, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Begin a new take: no cues, frame 0."""
        self._require_alive()
        dropped = self._dropped(self.pending)
        self._begin_take(self.take + 1, now)
        self.renew(now)
        return (Receipt(command_id, CommandKind.RESET, Stage.ACCEPTED, 0), *dropped)

    def end(self) -> None:
        """Over."""
        self.state = State.ENDED

    # Viewers

    def shown(self, frame: int, now: float) -> None:
        """The viewer reports what was seen. A report that goes back, or comes while paused, changes nothing."""
        self._require_alive()
        if not 0 <= frame < self.delivered_frames:
            raise InvalidRequest(
                f"frame {frame} cannot have been shown; the last one made is {self.delivered_frames - 1}"
            )
        self.renew(now)
        if self.state is State.RUNNING:
            self._position.report(frame, now)

    def reports_ended(self, now: float) -> None:
        """The controller who reported has gone: a clock stands in."""
        self._position.reports_end(now)

    def attach(self, client_id: str, *, reattach: bool) -> bool:
        """A controller comes; whether it steers. One that returns takes nothing from who has come since."""
        if reattach and self.controller not in ("", client_id):
            return False
        self.controller = client_id
        return True

    def viewer_came(self, now: float) -> None:
        """Somebody watches."""
        self.viewers += 1
        self.renew(now)
        self._run_clock(now)

    def viewer_left(self, now: float) -> None:
        """Somebody has stopped watching."""
        self.viewers -= 1
        self.renew(now)
        self._run_clock(now)

    def renew(self, now: float) -> None:
        """Somebody was here."""
        self._seen = now

    def lease_ends(self) -> float:
        """When the session ends if nobody comes; never while somebody watches."""
        return math.inf if self.viewers else self._seen + self.pace.lease_s

    # Blocks

    def due(self, now: float) -> float | None:
        """When the next block may begin; None until something happens."""
        if self.state is not State.RUNNING:
            return None
        if self.next_block <= self._allowed(now):
            return now
        target = self.blocks.pixel_frames(max(0, self.next_block - self.pace.ahead))
        if self._position.is_reported or target >= self.delivered_frames:
            return None
        return self._position.expects(target)

    def deadline(self, now: float) -> float:
        """When the next block is to be on screen; a fresh session's is when it began to wait.

        One that nobody's clock waits for may wait as long as a block lasts, so that it makes no other one late.
        """
        expected = self._position.expects(self.earliest_frame)
        if expected is not None:
            return expected
        if self.delivered_frames == 0:
            return self._waiting_since
        frames = TEMPORAL_FACTOR * self.blocks.later
        return self._waiting_since + frames / FRAMES_PER_SECOND

    def begin_block(self, now: float) -> BlockPlan:
        """Commit what falls on the next block."""
        block, first = self.next_block, self.earliest_frame
        landed = [self._take_out_at(frame) for frame in self._landing(block)]
        receipts = list(self._dropped(landed[:-1]))
        applied = None
        if landed:
            winner = landed[-1]
            applied = Applied(winner.cue, block, first, winner.command_id)
            kind = CommandKind.SCHEDULE_PROMPT
            receipts.append(Receipt(winner.command_id, kind, Stage.APPLIED, first, winner.cue.frame))
            self._applied.append(applied)
            self._present = _Present(winner.cue, self._steps - 1, 0)
        step = self._next_step(block, first)
        self.next_block += 1
        self._waiting_since = now
        return BlockPlan(block, first, self.earliest_frame, step, tuple(receipts), applied)

    def give_up_block(self, plan: BlockPlan) -> None:
        """The block last begun was not made: it is as if it had not been begun."""
        self.next_block = plan.block
        if plan.applied is not None:
            self._applied.pop()
            self._put(Pending(plan.applied.cue, plan.applied.command_id))
        self._walk_steps()

    def delivered(self, plan: BlockPlan, now: float) -> bool:
        """A block has been sent; True if it came after it was to be on screen."""
        expected = self._position.expects(plan.first_frame)
        late = self.delivered_frames > 0 and expected is not None and now > expected
        if late:
            self._position.late(plan.first_frame, now)
        self.delivered_frames = plan.end_frame
        self._run_clock(now)
        return late

    # Records

    def record(self, now: float) -> SessionRecord:
        """As plain data."""
        return SessionRecord(
            self.pace, self.state, self.take, self.next_block, self.delivered_frames, self.shown_frame(now),
            self.pending, self.applied, self.receipts.entries, self.controller, self.seq,
        )  # fmt: skip

    def rewound(self, block: int, now: float) -> SessionRecord:
        """As it was before `block` was begun; cues that have applied from there on are pending again."""
        back = [Pending(applied.cue, applied.command_id) for applied in self._applied if applied.block >= block]
        pending = {found.cue.frame: found for found in (*back, *self.pending)}
        frames = self.blocks.pixel_frames(block)
        delivered = min(self.delivered_frames, frames) if block >= self.next_block else frames
        state = self.state
        if block == 0 and state in (State.CREATED, State.READY):
            state = State.READY if 0 in pending else State.CREATED
        return replace(
            self.record(now),
            state=state,
            next_block=min(block, self.next_block),
            delivered_frames=delivered,
            shown=min(self.shown_frame(now), delivered - 1),
            pending=tuple(pending[frame] for frame in sorted(pending)),
            applied=tuple(applied for applied in self._applied if applied.block < block),
        )

    # Cues

    def _put(self, pending: Pending) -> None:
        frame = pending.cue.frame
        if frame not in self._pending:
            insort(self._frames, frame)
        self._pending[frame] = pending
        self._listed = None
        self._look_at_start()

    def _take_out(self, frame: int) -> Pending:
        self._require_pending(frame)
        pending = self._take_out_at(frame)
        self._look_at_start()
        return pending

    def _take_out_at(self, frame: int) -> Pending:
        del self._frames[bisect_left(self._frames, frame)]
        self._listed = None
        return self._pending.pop(frame)

    def _look_at_start(self) -> None:
        if self.state in (State.CREATED, State.READY):
            self.state = State.READY if 0 in self._pending else State.CREATED

    def _landing(self, block: int) -> list[int]:
        end = self.blocks.pixel_frames(block)
        return self._frames[: bisect_left(self._frames, end + 1)]

    def _applies_at(self, frame: int) -> int:
        return self.blocks.pixel_frames(self.blocks.block_at(frame))

    def _dropped(self, cues: Iterable[Pending]) -> tuple[Receipt, ...]:
        kind = CommandKind.SCHEDULE_PROMPT
        return tuple(
            Receipt(found.command_id, kind, Stage.DROPPED, self._applies_at(found.cue.frame), found.cue.frame)
            for found in cues
        )

    # Steps, as `timeline.schedule` has them

    def _next_step(self, block: int, first: int) -> Step | None:
        present = self._present
        if present is None or present.made >= _step_count(present.cue):
            return None
        made = present.made + 1
        self._present = present._replace(made=made)
        self._steps += 1
        cue, transition = present.cue, present.cue.transition
        if transition is None:
            return Step(block, first, cue.frame, cue.blend)
        return Step(
            block, first, cue.frame, cue.blend, present.source, made / transition.blocks, transition.method
        )

    def _walk_steps(self) -> None:
        """Count the steps of the blocks begun so far again."""
        self._steps, self._present = 0, None
        ends = [*(applied.block for applied in self._applied), self.next_block][1:]
        for applied, end in zip(self._applied, ends, strict=True):
            made = min(_step_count(applied.cue), end - applied.block)
            self._present = _Present(applied.cue, self._steps - 1, made)
            self._steps += made

    # Rules

    def _allowed(self, now: float) -> int:
        """The last block that may be begun, by what has been shown."""
        shown = max(self._position.shown(self.delivered_frames, now), 0)
        ahead = self.pace.ahead
        if self.pace.fps == 0 and not self._position.is_reported:
            ahead = UNREPORTED_BLOCKS
        return self._block_of(shown) + ahead

    def _block_of(self, frame: int) -> int:
        """The block that contains `frame`."""
        return self.blocks.block_at(frame + 1) - 1

    def _run_clock(self, now: float) -> None:
        self._position.run(self.state is State.RUNNING and self.viewers > 0 and self.delivered_frames > 0, now)

    def _require_alive(self) -> None:
        if self.state is State.ENDED:
            raise SessionNotFound("the session has ended; open another one")

    def _require_state(self, state: State, verb: str) -> None:
        self._require_alive()
        if self.state is not state:
            raise WrongState(
                f"the session is {self.state.name.lower()}; only a {state.name.lower()} one can {verb}"
            )

    def _require_ahead(self, frame: int) -> None:
        if frame > LAST_FRAME:
            raise FrameOutOfRange(f"frame {frame} is never reached; the last possible one is {LAST_FRAME}")
        if self.blocks.block_at(frame) < self.next_block:
            raise FrameOutOfRange(f"frame {frame} is over; the earliest possible frame is {self.earliest_frame}")

    def _require_pending(self, frame: int) -> None:
        self._require_alive()
        if frame not in self._pending:
            if any(applied.cue.frame == frame for applied in self._applied):
                raise FrameOutOfRange(
                    f"the cue at frame {frame} has applied; the earliest frame is {self.earliest_frame}"
                )
            listed = ", ".join(map(str, self._frames[:8])) or "none"
            raise InvalidRequest(f"no cue is pending at frame {frame}; cues are at: {listed}")
        if frame == 0 and self.state in (State.RUNNING, State.PAUSED):
            raise WrongState("the session has been started: the cue at frame 0 stays; reset begins anew")


def _step_count(cue: Cue) -> int:
    return 1 if cue.transition is None else cue.transition.blocks

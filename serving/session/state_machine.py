"""The logic of a session: commands and a clock in, receipts and plans of blocks out. No tensors, no network."""

from __future__ import annotations

import math
from dataclasses import replace

from engines.config.geometry import FRAMES_PER_SECOND, TEMPORAL_FACTOR, BlockLengths
from serving.errors import FrameOutOfRange, InvalidRequest, SessionNotFound, WrongState
from serving.session.applied_log import AppliedLog
from serving.session.cue_queue import CueQueue
from serving.session.pacing import BeginLimit, Pace, Position
from serving.session.receipt_log import ReceiptLog
from serving.session.rewinding import rewound
from serving.session.transitions import rest_of_transition, step_at, steps_before
from serving.session.types import (
    Applied,
    BlockPlan,
    CommandKind,
    Pending,
    Receipt,
    SessionRecord,
    Stage,
    State,
    Waiting,
)
from serving.timeline.cue import LAST_FRAME, Blend, Cue, Restyling, Transition

__all__ = [
    "LAST_FRAME", "Applied", "BlockPlan", "CommandKind", "Pending", "Receipt", "Session", "SessionRecord", "Stage",
    "State",
]  # fmt: skip


_CUT = Restyling(cuts=True)

LOST_BLOCKS = 32
"""The most that a viewer may have seen of a copy that was lost, behind what its standby knew."""


class Session:
    """One session. Every method takes the time `now` in seconds; a command that raises has changed nothing.

    Commands return their receipt first, then those of cues that they have dropped. What is done for a block takes
    no longer because many came before it.
    """

    def __init__(self, pace: Pace, blocks: BlockLengths, now: float) -> None:
        self.pace = pace
        self.blocks = blocks
        self.viewers = 0
        self.receipts = ReceiptLog()
        self.controller = ""
        self.seq = 0
        self._seen = now
        # One more than run ahead, so that a reset need not wait.
        self._limit = BeginLimit((pace.ahead + 1) * TEMPORAL_FACTOR * blocks.later / max(pace.fps, 1))
        self._begin_take(0, now)

    @classmethod
    def of(cls, record: SessionRecord, blocks: BlockLengths, now: float, log: AppliedLog | None = None) -> Session:
        """A session that goes on from a record, without a viewer yet.

        `log` is its own from now on; without one, the record must have all that has applied. Raises ValueError.
        """
        session = cls(record.pace, blocks, now)
        session.state, session.take = record.state, record.take
        session.next_block, session.delivered_frames = record.next_block, record.delivered_frames
        session._pending = CueQueue(blocks, record.pending)
        session._log = AppliedLog.of(record.applied) if log is None else log
        session._position = Position(record.pace, max(record.shown, 0))
        session._paused_at = record.shown
        session._lost_frames = blocks.pixel_frames(record.next_block + LOST_BLOCKS)
        session.receipts, session.controller = ReceiptLog(record.receipts), record.controller
        session.seq, session.suspended = record.seq, record.suspended
        return session

    def _begin_take(self, take: int, now: float) -> None:
        self.state = State.CREATED
        self.suspended = False
        self.take = take
        self.next_block = 0
        self.delivered_frames = 0
        self._pending = CueQueue(self.blocks)
        self._log = AppliedLog()
        self._position = Position(self.pace)
        self._paused_at = -1
        self._lost_frames = 0
        self._waiting_since = now

    # How it stands

    @property
    def pending(self) -> tuple[Pending, ...]:
        """Cues that have not applied yet, by frame."""
        return self._pending.listed

    @property
    def applied(self) -> AppliedLog:
        """Cues that have applied, in order; to be read, and closed with the session."""
        return self._log

    @property
    def prompt(self) -> str:
        """The text in force; empty before the first."""
        last = self._log.last
        return "" if last is None else last.cue.blend.text

    @property
    def earliest_frame(self) -> int:
        """The first frame of the next block: the earliest at which a cue can apply."""
        return self.blocks.pixel_frames(self.next_block)

    @property
    def cuts_next(self) -> bool:
        """Whether the video opens anew with the next block, by what is pending now."""
        landing = self._pending.landing(self.next_block)
        return self.next_block > 0 and bool(landing) and landing[-1].cue.cuts

    def shown_frame(self, now: float) -> int:
        """The last frame that the viewer has seen, as far as is known; -1 before the first."""
        if self.state is State.PAUSED:
            return self._paused_at
        return self._position.shown(self.delivered_frames, now)

    # Commands

    def schedule(
        self, blend: Blend, frame: int | None, transition: Transition | None, command_id: str, now: float,
        restyling: Restyling | None = None,
    ) -> tuple[Receipt, ...]:  # fmt: skip
        """Schedule a cue, over one that is on its frame; without a frame, the earliest possible."""
        self._require_alive()
        at = self.earliest_frame if frame is None else frame
        cue = Cue(at, blend, transition, restyling)
        self._pending.require_ahead(at, self.next_block)
        self._pending.require_room(at)
        dropped = self._pending.get(at)
        self._put(Pending(cue, command_id))
        self.renew(now)
        accepted = Receipt(
            command_id, CommandKind.SCHEDULE_PROMPT, Stage.ACCEPTED, self._pending.applies_at(at), at
        )
        return (accepted, *self._pending.dropped([] if dropped is None else [dropped]))

    def remove(self, frame: int, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Take a pending cue away."""
        pending = self._take_out(frame)
        self.renew(now)
        removed = Receipt(
            command_id, CommandKind.REMOVE_PROMPT, Stage.ACCEPTED, self._pending.applies_at(frame), frame
        )
        return (removed, *self._pending.dropped([pending]))

    def move(self, frame: int, to: int, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Move a pending cue, over one that is there already."""
        cue = replace(self._require_pending(frame).cue, frame=to)
        self._pending.require_ahead(to, self.next_block)
        dropped = None
        if frame != to:
            moved, dropped = self._take_out(frame), self._pending.get(to)
            self._put(Pending(cue, moved.command_id))
        self.renew(now)
        accepted = self._accepted(CommandKind.MOVE_PROMPT, command_id, to)
        return (accepted, *self._pending.dropped([dropped] if dropped else []))

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
        at = self._position.seen(self.delivered_frames, now) if frame is None else frame
        if not -1 <= at < self._seen_frames:
            raise FrameOutOfRange(
                f"frame {at} cannot have been seen; the last one made is {self.delivered_frames - 1}"
            )
        at = min(at, self.delivered_frames - 1)
        self.state, self._paused_at = State.PAUSED, at
        self._position.go_on_from(max(at, 0), now)
        self._run_clock(now)
        self.renew(now)
        return (Receipt(command_id, CommandKind.PAUSE, Stage.ACCEPTED, at),)

    def resume(self, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Go on where the viewer stopped."""
        self._require_state(State.PAUSED, "resume")
        self.state, self._waiting_since = State.RUNNING, now
        self.suspended = False
        self._run_clock(now)
        self.renew(now)
        return (Receipt(command_id, CommandKind.RESUME, Stage.ACCEPTED, self._paused_at + 1),)

    def suspend(self) -> None:
        """Its slot is given back while it is paused."""
        self._require_state(State.PAUSED, "suspend")
        self.suspended = True

    def reset(self, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Begin a new take: no cues, frame 0."""
        self._require_alive()
        dropped = self._pending.dropped(self.pending)
        self._log.close()
        self._begin_take(self.take + 1, now)
        self.renew(now)
        return (Receipt(command_id, CommandKind.RESET, Stage.ACCEPTED, 0), *dropped)

    def cut(self, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Have the video open anew with the next block: by the cue that falls on it, or one of the same prompt."""
        if self._log.last is None:
            self._require_alive()
            raise WrongState("no block has been begun, and the first one opens the video: there is nothing to cut")
        return self._restyle(_CUT, CommandKind.CUT, command_id, now)

    def restyle(self, restyling: Restyling, command_id: str, now: float) -> tuple[Receipt, ...]:
        """Restyle from the next block on: by the cue that falls on it, or one of the same prompt."""
        if not restyling.changes_something:
            raise InvalidRequest("nothing is said of how to restyle; set `noise_scale` or another field")
        return self._restyle(restyling, CommandKind.RESTYLE, command_id, now)

    def reopen(self) -> None:
        """Cut where nobody asked for it; nothing where there is nothing to cut, or all is over."""
        if self.state is not State.ENDED and self._log.last is not None:
            self._restyle_next(_CUT, "")

    def _restyle(
        self, restyling: Restyling, kind: CommandKind, command_id: str, now: float
    ) -> tuple[Receipt, ...]:
        self._require_alive()
        at = self.earliest_frame
        if not self._pending.landing(self.next_block):
            if self._log.last is None:
                raise WrongState("no prompt is in force yet; schedule one at frame 0, with its `restyling`")
            self._pending.require_room(at)
        cue = self._restyle_next(restyling, command_id)
        self.renew(now)
        return (Receipt(command_id, kind, Stage.ACCEPTED, at, cue.frame),)

    def _restyle_next(self, restyling: Restyling, command_id: str) -> Cue:
        """By the cue that falls on the next block, or by one that changes nothing of the prompt."""
        landing = self._pending.landing(self.next_block)
        found = landing[-1] if landing else Pending(self._repeated(), command_id)
        self._put(replace(found, cue=found.cue.restyled(restyling)))
        return found.cue

    def _repeated(self) -> Cue:
        """A cue at the next block of the prompt in force, with what is left of the transition to it."""
        last = self._log.last
        assert last is not None
        return Cue(self.earliest_frame, last.cue.blend, rest_of_transition(last, self.next_block))

    def end(self) -> None:
        """End the session: no command is taken any more."""
        self.state = State.ENDED
        self._log.close()

    # Viewers

    def shown(self, frame: int, now: float) -> None:
        """The viewer reports what was seen. A report that goes back changes nothing.

        One that comes while paused was on its way, and counts once the session goes on. One of a frame that a lost
        copy had made counts as the frames are made again.
        """
        self._require_alive()
        if not 0 <= frame < self._seen_frames:
            raise InvalidRequest(
                f"frame {frame} cannot have been shown; the last one made is {self.delivered_frames - 1}"
            )
        self.renew(now)
        if self.state is State.RUNNING or (self.state is State.PAUSED and frame > self._paused_at):
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
        """Count one more viewer, for whom the clock runs."""
        self.viewers += 1
        self.renew(now)
        self._run_clock(now)

    def viewer_left(self, now: float) -> None:
        """Count one viewer less."""
        self.viewers -= 1
        self.renew(now)
        self._run_clock(now)

    def renew(self, now: float) -> None:
        """Renew the lease."""
        self._seen = now

    def lease_ends(self) -> float:
        """When the lease ends, and the session with it; never while there is a viewer."""
        return math.inf if self.viewers else self._seen + self.pace.lease_s

    # Blocks

    def due(self, now: float) -> float | None:
        """When the next block may begin; None until something happens."""
        if self.state is not State.RUNNING:
            return None
        if self.next_block <= self._position.last_block(self.delivered_frames, self.blocks, now):
            # A client that says it has seen everything at once gets no more of the device than its pace.
            return max(now, self._limit.at) if self.pace.fps else now
        target = self.blocks.pixel_frames(max(0, self.next_block - self.pace.ahead))
        if self._position.is_reported or target >= self.delivered_frames:
            return None
        return self._position.expects(target)

    def waits_for(self, now: float) -> Waiting:
        """What has to happen before the next block is due; UNSPECIFIED where that is a matter of time."""
        if self.state is not State.RUNNING or self.due(now) is not None:
            return Waiting.UNSPECIFIED
        if self._position.is_reported or self.pace.fps == 0:
            return Waiting.SHOWN
        return Waiting.UNSPECIFIED if self.viewers else Waiting.VIEWER

    def expected(self) -> float | None:
        """When the next block is to be on screen by the viewers' clock; None where none runs."""
        return self._position.expects(self.earliest_frame)

    def patience(self) -> float:
        """Until when the next block can wait where no clock runs; that of a fresh session cannot.

        One that nobody looks at may wait as long as a block lasts.
        """
        if self.delivered_frames == 0:
            return self._waiting_since
        frames = TEMPORAL_FACTOR * self.blocks.later
        return self._waiting_since + frames / FRAMES_PER_SECOND

    def begin_block(self, now: float) -> BlockPlan:
        """Commit what falls on the next block.

        Raises LimitReached, and has changed nothing, where the log of applied cues cannot be written.
        """
        block, first = self.next_block, self.earliest_frame
        landed = self._pending.landing(block)
        receipts = list(self._pending.dropped(landed[:-1]))
        applied = None
        if landed:
            winner = landed[-1]
            steps = steps_before(self._log.last, block)
            applied = Applied(winner.cue, block, first, winner.command_id, steps)
            self._log.append(applied)
            for pending in landed:
                self._pending.take_out(pending.cue.frame)
            kind = CommandKind.SCHEDULE_PROMPT
            receipts.append(Receipt(winner.command_id, kind, Stage.APPLIED, first, winner.cue.frame))
        self.next_block += 1
        self._waiting_since = now
        if self.pace.fps:
            self._limit.begun(now, (self.earliest_frame - first) / self.pace.fps)
        step = step_at(self._log.last, block, first)
        return BlockPlan(block, first, self.earliest_frame, step, tuple(receipts), applied)

    def give_up_block(self, plan: BlockPlan) -> None:
        """The block last begun was not made: it is as if it had not been begun."""
        self.next_block = plan.block
        if plan.applied is not None:
            self._log.truncate(len(self._log) - 1)
            self._put(Pending(plan.applied.cue, plan.applied.command_id))

    def slack(self, plan: BlockPlan, now: float) -> float | None:
        """Seconds until a block is to be on screen; None for a session's first, or where nothing is known."""
        expected = self._position.expects(plan.first_frame)
        return None if expected is None or self.delivered_frames == 0 else expected - now

    def delivered(self, plan: BlockPlan, now: float) -> bool:
        """A block has been sent; True if it came after it was to be on screen."""
        slack = self.slack(plan, now)
        if late := slack is not None and slack < 0:
            self._position.late(plan.first_frame, now)
        self.delivered_frames = plan.end_frame
        self._run_clock(now)
        return late

    # Records

    def record(self, now: float) -> SessionRecord:
        """As plain data."""
        return SessionRecord(
            self.pace, self.state, self.take, self.next_block, self.delivered_frames, self.shown_frame(now),
            self.pending, self._log.tail, self.receipts.entries, self.controller, self.seq, self.suspended,
        )  # fmt: skip

    def forget_clients(self) -> None:
        """This is a second session: what clients have asked of the first is not asked of it, and it has a slot."""
        self.receipts, self.controller, self.seq = ReceiptLog(), "", 0
        self.suspended = False

    def copy(self, block: int, now: float) -> Session:
        """A session that goes on from this one as it was before `block` was begun, with a log of its own.

        Cues that have applied from there on are pending again, as `rewinding.rewound` says.
        """
        log = self._log.copy(self._log.count_before(block))
        record = rewound(self.record(now), self._log, block, log.tail, self.blocks)
        return Session.of(record, self.blocks, now, log)

    # Cues

    def _accepted(self, kind: CommandKind, command_id: str, frame: int) -> Receipt:
        return Receipt(command_id, kind, Stage.ACCEPTED, self._pending.applies_at(frame), frame)

    def _put(self, pending: Pending) -> None:
        self._pending.put(pending)
        self._look_at_start()

    def _take_out(self, frame: int) -> Pending:
        self._require_pending(frame)
        pending = self._pending.take_out(frame)
        self._look_at_start()
        return pending

    def _look_at_start(self) -> None:
        if self.state in (State.CREATED, State.READY):
            self.state = State.READY if 0 in self._pending else State.CREATED

    def _has_applied(self, frame: int) -> bool:
        """Whether the log has a cue that was scheduled at `frame`."""
        found = self._log.page(self._log.count_before(self.blocks.block_at(frame)), 1)
        return any(entry.cue.frame == frame for entry in found)

    # Rules

    @property
    def _seen_frames(self) -> int:
        """How many frames somebody may have seen."""
        return max(self.delivered_frames, self._lost_frames)

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

    def _require_pending(self, frame: int) -> Pending:
        self._require_alive()
        pending = self._pending.get(frame)
        if pending is None:
            if self._has_applied(frame):
                raise FrameOutOfRange(
                    f"the cue at frame {frame} has applied; the earliest frame is {self.earliest_frame}"
                )
            listed = ", ".join(map(str, self._pending.first_frames(8))) or "none"
            raise InvalidRequest(f"no cue is pending at frame {frame}; cues are at: {listed}")
        if frame == 0 and self.state in (State.RUNNING, State.PAUSED):
            raise WrongState("the session has been started: the cue at frame 0 stays; reset begins anew")
        return pending

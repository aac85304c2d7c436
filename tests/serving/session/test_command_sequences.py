"""A session under any mix of commands, blocks, viewers, reports, failures and moves: what always holds."""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.config.geometry import BlockLengths
from serving.errors import SessionError
from serving.session.pacing import UNREPORTED_BLOCKS, Pace
from serving.session.state_machine import BlockPlan, Receipt, Session, Stage, State
from serving.timeline.cue import Blend, Transition
from serving.timeline.schedule import Step, schedule
from serving.timeline.timeline import Timeline

BLOCKS = BlockLengths()
ROUNDING_S = 1e-6
BLENDS = [Blend.of(text) for text in ("noon", "dusk", "night")]

paces = st.builds(Pace, st.sampled_from([0, 8, 16, 60]), st.sampled_from([1, 2, 5]))
transitions = st.none() | st.builds(Transition, st.integers(1, 5), st.sampled_from(["linear", "slerp"]))
offsets = st.integers(-15, 70)


class SessionMachine(RuleBasedStateMachine):
    """Keeps its own account of cues by frame, and of every receipt."""

    @initialize(pace=paces, viewers=st.integers(0, 2), begun=st.integers(0, 3))
    def open(self, pace: Pace, viewers: int, begun: int) -> None:
        self.now = 100.0
        self.session = Session(pace, BLOCKS, self.now)
        self.names = 0
        self.cues: dict[int, str] = {}
        self.landed: dict[int, str] = {}
        self.ends: Counter[str] = Counter()
        self.steps: dict[int, Step] = {}
        self.on_the_way: deque[BlockPlan] = deque()
        self.last_shown = -1
        for _ in range(viewers):
            self.session.viewer_came(self.now)
        if begun:
            self.schedule(BLENDS[0], 0, None)
            self.start()
            self.play(begun)

    # Commands

    @rule(blend=st.sampled_from(BLENDS), offset=st.none() | offsets, transition=transitions)
    def schedule(self, blend: Blend, offset: int | None, transition: Transition | None) -> None:
        name, self.names = str(self.names), self.names + 1
        earliest = self.session.earliest_frame
        frame = earliest if offset is None else earliest + offset
        over = frame < 0 or BLOCKS.block_at(frame) < self.session.next_block
        if over or (frame == 0 and transition is not None):
            with pytest.raises((SessionError, ValueError)):
                self.session.schedule(blend, frame, transition, name, self.now)
            return
        asked = None if offset is None else frame
        self.account(self.session.schedule(blend, asked, transition, name, self.now), name)
        self.cues[frame] = name

    @rule(choice=st.integers(0, 9))
    def remove(self, choice: int) -> None:
        if (frame := self.chosen(choice)) is not None:
            self.account(self.session.remove(frame, "remove", self.now), "remove")
            del self.cues[frame]

    @rule(choice=st.integers(0, 9), offset=offsets)
    def move(self, choice: int, offset: int) -> None:
        frame, to = self.chosen(choice), self.session.earliest_frame + offset
        if frame is None or to < 0 or BLOCKS.block_at(to) < self.session.next_block:
            return
        if to == 0 and any(p.cue.transition for p in self.session.pending if p.cue.frame == frame):
            return
        self.account(self.session.move(frame, to, "move", self.now), "move")
        self.cues[to] = self.cues.pop(frame)

    @rule()
    def start(self) -> None:
        if self.session.state is State.READY:
            self.account(self.session.start("start", self.now), "start")
        else:
            with pytest.raises(SessionError):
                self.session.start("start", self.now)

    @rule(back=st.none() | st.integers(-1, 30))
    def pause(self, back: int | None) -> None:
        frame = None if back is None else self.session.delivered_frames - 1 - back
        seen_frames = self.session._seen_frames
        if self.session.state is not State.RUNNING or (frame is not None and not -1 <= frame < seen_frames):
            with pytest.raises(SessionError):
                self.session.pause(frame, "pause", self.now)
            return
        unknown = self.session.pace.fps == 0 and not self.session._position.is_reported
        supposed = self.delivered - 1 if unknown else self.session.shown_frame(self.now)
        seen = supposed if frame is None else min(frame, self.delivered - 1)
        assert self.session.pause(frame, "pause", self.now)[0].frame == seen
        self.last_shown = seen

    @precondition(lambda self: self.session.state is State.PAUSED)
    @rule()
    def resume(self) -> None:
        at = self.session.shown_frame(self.now)
        assert self.session.resume("resume", self.now)[0].frame == at + 1
        assert min(max(at, 0), self.delivered - 1) <= self.session.shown_frame(self.now) < max(self.delivered, 1)

    @rule(sure=st.integers(0, 5))
    def reset(self, sure: int) -> None:
        if sure < 5:
            return
        take = self.session.take
        self.account(self.session.reset("reset", self.now), "reset")
        self.forget_take()
        assert (self.session.take, self.session.pending, len(self.session.applied)) == (take + 1, (), 0)

    # Viewers and time

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.8, 2.5, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def viewer_comes(self) -> None:
        self.session.viewer_came(self.now)

    @precondition(lambda self: self.session.viewers > 0)
    @rule()
    def viewer_leaves(self) -> None:
        self.session.viewer_left(self.now)

    @rule(back=st.integers(-3, 40))
    def report(self, back: int) -> None:
        frame = self.delivered - 1 - back
        if not 0 <= frame < self.session._seen_frames:
            with pytest.raises(SessionError):
                self.session.shown(frame, self.now)
            return
        # A viewer who reports knows better than the clock did.
        reported = self.session._position.is_reported
        self.session.shown(frame, self.now)
        if self.session.state is State.RUNNING and not reported:
            self.last_shown = min(frame, self.delivered - 1)

    @rule()
    def controller_leaves(self) -> None:
        self.session.reports_ended(self.now)

    # Blocks

    @precondition(lambda self: len(self.on_the_way) < 2)
    @rule()
    def begin(self) -> None:
        due = self.session.due(self.now)
        if due is None or due > self.now:
            return
        assert self.session.state is State.RUNNING
        self.require_not_too_far()
        expected, before = self.session.next_block, self.session.earliest_frame
        plan = self.session.begin_block(self.now)
        assert (plan.block, plan.first_frame, plan.end_frame) == (expected, before, self.session.earliest_frame)
        self.account(plan.receipts)
        self.note(plan)

    @precondition(lambda self: len(self.on_the_way) > 0)
    @rule()
    def deliver(self) -> None:
        plan = self.on_the_way.popleft()
        late = self.session.delivered(plan, self.now)
        assert self.delivered == plan.end_frame
        assert not late or (self.session.pace.fps > 0 and self.session.viewers > 0)

    @precondition(lambda self: not self.on_the_way)
    @rule(blocks=st.integers(1, 9))
    def play(self, blocks: int) -> None:
        """As it goes most of the time."""
        for _ in range(blocks):
            self.now = max(self.now, self.session.due(self.now) or 0.0)
            self.begin()
            if self.on_the_way:
                self.deliver()
            self.what_is_shown_never_goes_back_and_is_never_more_than_was_delivered()

    @precondition(lambda self: len(self.on_the_way) > 0)
    @rule()
    def fail(self) -> None:
        plan = self.on_the_way.pop()
        self.session.give_up_block(plan)
        self.forget_blocks(plan.block)
        assert self.session.next_block == plan.block

    # Records

    @precondition(lambda self: not self.on_the_way)
    @rule()
    def go_on_elsewhere(self) -> None:
        record = self.session.record(self.now)
        self.session = Session.of(record, BLOCKS, self.now)
        assert self.session.record(self.now) == record

    @rule(lost=st.integers(0, 3))
    def go_on_from_an_earlier_block(self, lost: int) -> None:
        block = max(BLOCKS.block_at(self.delivered) - lost, 0)
        self.session = self.session.copy(block, self.now)
        self.on_the_way.clear()
        self.forget_blocks(block)
        self.last_shown = min(self.last_shown, self.delivered - 1)
        assert (self.session.next_block, self.delivered) == (block, BLOCKS.pixel_frames(block))

    # The account

    @property
    def delivered(self) -> int:
        return self.session.delivered_frames

    def chosen(self, choice: int) -> int | None:
        """The frame of a cue that may be moved or removed."""
        free = sorted(f for f in self.cues if f > 0 or self.session.state in (State.CREATED, State.READY))
        return free[choice % len(free)] if free else None

    def account(self, receipts: tuple[Receipt, ...], command: str | None = None) -> None:
        """Command first, and accepted; then ends of cues, each its only one."""
        if command is not None:
            assert (receipts[0].command_id, receipts[0].stage) == (command, Stage.ACCEPTED)
            receipts = receipts[1:]
        for receipt in receipts:
            self.ends[receipt.command_id] += 1
            assert receipt.stage in (Stage.APPLIED, Stage.DROPPED)

    def note(self, plan: BlockPlan) -> None:
        """Move what has landed on a block out of the pending cues."""
        landed = sorted(frame for frame in self.cues if frame <= plan.first_frame)
        assert (plan.applied is None) == (not landed)
        if plan.applied is not None:
            assert (plan.applied.cue.frame, plan.applied.command_id) == (landed[-1], self.cues[landed[-1]])
            self.landed[landed[-1]] = self.cues[landed[-1]]
        for frame in landed:
            del self.cues[frame]
        if plan.step is not None:
            self.steps[plan.block] = plan.step
        self.on_the_way.append(plan)

    def forget_blocks(self, block: int) -> None:
        """Cues that landed on `block` or later are pending again."""
        for frame in [frame for frame in self.landed if BLOCKS.block_at(frame) >= block]:
            self.cues[frame] = self.landed.pop(frame)
            self.ends[self.cues[frame]] -= 1
        self.steps = {number: step for number, step in self.steps.items() if number < block}

    def forget_take(self) -> None:
        self.cues, self.landed, self.steps, self.last_shown = {}, {}, {}, -1
        self.on_the_way.clear()

    def require_not_too_far(self) -> None:
        """Of the next block: what is shown is at most `ahead` blocks before it."""
        pace, reported = self.session.pace, self.session._position.is_reported
        shown_block = (max(self.session.shown_frame(self.now + ROUNDING_S), 0) + 3) // 12
        allowed = UNREPORTED_BLOCKS if pace.fps == 0 and not reported else pace.ahead
        assert self.session.next_block <= shown_block + allowed

    # What always holds

    @invariant()
    def pending_cues_are_those_accounted_for(self) -> None:
        assert [(p.cue.frame, p.command_id) for p in self.session.pending] == sorted(self.cues.items())

    @invariant()
    def every_cue_has_ended_once_or_is_pending(self) -> None:
        pending = set(self.cues.values())
        assert all(self.ends[name] == (0 if name in pending else 1) for name in self.ends)
        assert all(self.ends[name] == 0 for name in pending)

    @invariant()
    def steps_are_those_of_the_applied_cues_offline(self) -> None:
        applied = self.session.applied
        assert [entry.cue.frame for entry in applied] == sorted(self.landed)
        if len(applied):
            offline = schedule(Timeline(tuple(entry.cue for entry in applied)), BLOCKS).steps
            begun = {step.block: step for step in offline if step.block < self.session.next_block}
            assert begun == self.steps

    @invariant()
    def applied_cues_lie_on_their_blocks(self) -> None:
        blocks = [entry.block for entry in self.session.applied]
        assert all(before < after for before, after in pairwise(blocks))
        assert all(entry.frame == BLOCKS.pixel_frames(entry.block) for entry in self.session.applied)

    @invariant()
    def what_is_shown_never_goes_back_and_is_never_more_than_was_delivered(self) -> None:
        shown = self.session.shown_frame(self.now)
        assert self.last_shown <= shown < max(self.delivered, 1)
        self.last_shown = shown

    @invariant()
    def what_is_due_is_due_now_or_later_and_in_a_running_session(self) -> None:
        due = self.session.due(self.now)
        assert due is None or (due >= self.now and self.session.state is State.RUNNING)


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=150, stateful_step_count=60)

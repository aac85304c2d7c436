"""What a standby is sent, over any history of a session; and that none of it grows with the session."""

from __future__ import annotations

import pickle
from collections import deque
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.config.geometry import BlockLengths
from serving.errors import ServingError
from serving.session.applied_log import AppliedLog
from serving.session.pacing import Pace
from serving.session.record_delta import RecordCopy, RecordDelta, RecordGap
from serving.session.state_machine import BlockPlan, Session
from serving.session.types import PAGE, SessionRecord
from serving.timeline.cue import Blend, Transition

BLOCKS = BlockLengths()
FAST = Pace(fps=0, ahead=64)


def started(pace: Pace = FAST) -> Session:
    session = Session(pace, BLOCKS, 0.0)
    session.schedule(Blend.of("noon"), 0, None, "", 0.0)
    session.start("", 0.0)
    return session


def play(session: Session, blocks: int, text: str = "prompt") -> None:
    """Blocks with a prompt each."""
    for _ in range(blocks):
        number = session.next_block
        session.schedule(Blend.of(f"{text} {number}"), None, None, f"c{number}", 0.0)
        session.delivered(session.begin_block(0.0), 0.0)


def copy_of(session: Session) -> RecordCopy:
    return RecordCopy(session.record(0.0), session.applied.past())


class StandbyMachine(RuleBasedStateMachine):
    """A session, and a copy that is told from time to time what has changed."""

    @initialize(begun=st.sampled_from([0, 3, 126, 127, 254, 255, 256, 383]))
    def open(self, begun: int) -> None:
        self.now = 0.0
        self.session = started()
        play(self.session, begun)
        self.on_the_way: deque[BlockPlan] = deque()
        self.copy = copy_of(self.session)

    def attempt(self, command: str, *arguments: object) -> None:
        with suppress(ServingError):
            getattr(self.session, command)(*arguments, "id", self.now)

    @rule(text=st.sampled_from(["dusk", "night"]), offset=st.integers(0, 60), blocks=st.none() | st.integers(1, 4))
    def schedule(self, text: str, offset: int, blocks: int | None) -> None:
        transition = None if blocks is None else Transition(blocks)
        frame = self.session.earliest_frame + offset
        if frame:
            self.attempt("schedule", Blend.of(text), frame, transition)

    @rule(choice=st.integers(0, 9), offset=st.integers(1, 60))
    def move(self, choice: int, offset: int) -> None:
        if pending := self.session.pending:
            frame = pending[choice % len(pending)].cue.frame
            self.attempt("move", frame, self.session.earliest_frame + offset)

    @rule(choice=st.integers(0, 9))
    def remove(self, choice: int) -> None:
        if pending := self.session.pending:
            self.attempt("remove", pending[choice % len(pending)].cue.frame)

    @rule(command=st.sampled_from(["pause", "resume", "start"]))
    def steer(self, command: str) -> None:
        self.attempt(command, *([None] if command == "pause" else []))

    @rule(sure=st.integers(0, 4), begun=st.sampled_from([0, 3, 300]))
    def reset(self, sure: int, begun: int) -> None:
        if sure == 0:
            self.session.reset("", self.now)
            self.on_the_way.clear()
            if begun == 0:
                return
            self.session.schedule(Blend.of("noon"), 0, None, "", 0.0)
            self.session.start("", 0.0)
            play(self.session, begun)

    @precondition(lambda self: len(self.on_the_way) < 2)
    @rule()
    def begin(self) -> None:
        if self.session.due(self.now) is not None:
            self.on_the_way.append(self.session.begin_block(self.now))

    @precondition(lambda self: len(self.on_the_way) > 0)
    @rule()
    def deliver(self) -> None:
        self.session.delivered(self.on_the_way.popleft(), self.now)

    @precondition(lambda self: len(self.on_the_way) > 0)
    @rule()
    def fail(self) -> None:
        self.session.give_up_block(self.on_the_way.pop())

    @precondition(lambda self: not self.on_the_way)
    @rule(blocks=st.sampled_from([1, 2, 100]))
    def play_on(self, blocks: int) -> None:
        if self.session.due(self.now) is not None:
            play(self.session, blocks)

    @rule()
    def tell(self) -> None:
        before, after = self.copy.record, self.session.record(self.now)
        delta = pickle.loads(pickle.dumps(RecordDelta.between(before, after)))
        assert delta.apply_to(before) == after
        try:
            self.copy.apply(delta)
        except RecordGap:
            new_take = before.take != after.take
            assert after.applied.count > (2 * PAGE if new_take else before.applied.count + PAGE)
            self.copy = copy_of(self.session)
        assert self.copy.record == after
        assert [*self.copy.log] == [*self.session.applied]

    @invariant()
    def no_entry_stays_in_memory_but_the_last(self) -> None:
        assert self.session.applied.held <= 2 * PAGE


TestStandbyMachine = StandbyMachine.TestCase
TestStandbyMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_nothing_that_stays_is_sent() -> None:
    session = started()
    play(session, 300)
    for frame in range(5000, 5400):
        session.schedule(Blend.of("later"), frame, None, "", 0.0)
    before = session.record(0.0)
    session.pause(None, "", 0.0)
    delta = RecordDelta.between(before, session.record(0.0))
    assert (delta.removed, delta.put, delta.applied, delta.pace) == ((), (), (), None)


def test_a_copy_that_missed_a_delta_notices_it() -> None:
    session, copy = started(), copy_of(started())
    play(session, 1)
    missed = session.record(0.0)
    play(session, 1)
    with pytest.raises(RecordGap, match="has 0 applied cues; the delta goes on from 1"):
        copy.apply(RecordDelta.between(missed, session.record(0.0)))
    assert copy.record == started().record(0.0)


def test_records_whose_logs_have_nothing_in_common_do_not_join() -> None:
    session, other = started(), started()
    play(session, 400)
    play(other, 400, "another")
    delta = RecordDelta.between(session.record(0.0), other.record(0.0))
    assert not delta.joins
    with pytest.raises(RecordGap):
        copy_of(session).apply(delta)


def test_a_block_given_up_at_the_edge_of_a_page_is_taken_back_by_the_copy() -> None:
    session = started()
    play(session, 2 * PAGE)
    copy = copy_of(session)
    session.schedule(Blend.of("one more"), None, None, "", 0.0)
    plan = session.begin_block(0.0)
    copy.apply(RecordDelta.between(copy.record, session.record(0.0)))
    assert copy.record.applied.first == PAGE
    session.give_up_block(plan)
    copy.apply(RecordDelta.between(copy.record, session.record(0.0)))
    assert copy.record == session.record(0.0)
    assert [*copy.log] == [*session.applied]


def test_a_session_goes_on_from_its_copy_with_all_its_past() -> None:
    session = started()
    copy = copy_of(session)
    for _ in range(6):
        play(session, 100)
        copy.apply(RecordDelta.between(copy.record, session.record(0.0)))
    record: SessionRecord = pickle.loads(pickle.dumps(copy.record))
    other = Session.of(record, BLOCKS, 0.0, AppliedLog.of(record.applied, copy.log.past()))
    assert other.record(0.0) == session.record(0.0)
    assert [*other.copy(150, 0.0).applied] == [*session.applied][:150]


def test_twelve_thousand_blocks_with_a_prompt_each_cost_each_the_same() -> None:
    """Counted, not timed: what a delta has, what is in memory, and what an entry takes in the file."""
    session = started()
    copy, record = copy_of(session), session.record(0.0)
    sizes, held, spooled = [], [], []
    for _ in range(12_000):
        play(session, 1, "a red balloon rises over the hills, seen from the harbour, number")
        before, record = record, session.record(0.0)
        delta = RecordDelta.between(before, record)
        copy.apply(delta)
        sizes.append(len(pickle.dumps(delta)))
        held.append(session.applied.held + copy.log.held)
        spooled.append(session.applied.spooled_bytes)
    assert max(sizes[-1000:]) - max(sizes[1000:2000]) <= 16
    assert max(sizes) < 1500
    assert max(held) == 4 * PAGE
    early, late = spooled[2000] - spooled[1000], spooled[-1] - spooled[-1001]
    assert late < 1.1 * early
    assert late < 40 * 1000
    assert len(session.record(0.0).applied.entries) <= 2 * PAGE


def test_prompt_ten_thousand_and_one_is_taken_where_the_others_have_applied() -> None:
    session = started()
    play(session, 10_050)
    assert (len(session.applied), session.prompt) == (10_050, "prompt 10049")


def test_a_session_is_ended_by_a_log_that_cannot_be_written_before_anything_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = started()
    play(session, 2 * PAGE)
    session.schedule(Blend.of("one more"), None, None, "", 0.0)
    before = session.record(0.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.session.page_spool.tempfile.TemporaryFile", full)
    with pytest.raises(ServingError, match="No space left on device"):
        session.begin_block(0.0)
    assert session.record(0.0) == before


def test_a_pace_that_has_changed_is_sent() -> None:
    before = started().record(0.0)
    after = replace(before, pace=Pace(fps=8))
    assert RecordDelta.between(before, after).apply_to(before) == after

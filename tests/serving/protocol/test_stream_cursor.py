"""Which events are news to a viewer, and how long a lost stream is tried for."""

from __future__ import annotations

from typing import Any

import pytest

from serving.client.backoff import Backoff
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.stream_cursor import StreamCursor, Verdict


def chunk(first: int, frames: int, take: int = 0, seq: int = 0) -> pb.Event:
    return pb.Event(take=take, seq=seq, chunk=pb.Chunk(first_frame=first, units=[pb.AccessUnit()] * frames))


def state(take: int = 0, **fields: int) -> pb.Event:
    return pb.Event(take=take, state=pb.Session(take=take, **fields))  # type: ignore[arg-type]


def test_a_chunk_that_was_there_is_old_and_one_that_skips_frames_leaves_a_hole() -> None:
    viewing = StreamCursor(0)
    assert viewing.judge(chunk(0, 9)) is Verdict.NEWS
    assert viewing.judge(chunk(0, 9)) is Verdict.OLD
    assert viewing.judge(chunk(21, 12)) is Verdict.HOLE
    assert viewing.judge(chunk(9, 12)) is Verdict.NEWS


def test_the_first_chunk_may_begin_before_the_frame_that_is_wanted() -> None:
    viewing = StreamCursor(15)
    assert viewing.judge(chunk(0, 9)) is Verdict.OLD
    assert viewing.judge(chunk(9, 12)) is Verdict.NEWS


def test_whoever_takes_what_comes_goes_on_from_where_the_session_stands() -> None:
    viewing = StreamCursor(None)
    viewing.judge(state(current_start_frame=33))
    assert viewing.reopen() == 33


def test_a_gap_is_passed_on_and_left_behind() -> None:
    viewing = StreamCursor(9)
    assert viewing.judge(pb.Event(gap=pb.Gap(first_frame=9, frames=24))) is Verdict.NEWS
    assert viewing.judge(chunk(33, 12)) is Verdict.NEWS


def receipt(seq: int) -> pb.Event:
    return pb.Event(seq=seq, receipt=pb.Receipt())


def test_where_a_number_is_missing_an_event_is() -> None:
    viewing = StreamCursor(0)
    assert [viewing.judge(event) for event in (chunk(0, 9, seq=5), receipt(6), receipt(0))] == [Verdict.NEWS] * 3
    assert viewing.judge(receipt(8)) is Verdict.HOLE
    viewing.reopen()
    assert [viewing.judge(event) for event in (receipt(11), chunk(9, 12, seq=20))] == [Verdict.NEWS] * 2
    assert viewing.judge(chunk(21, 12, seq=22)) is Verdict.HOLE


def test_progress_has_the_number_of_the_event_before_it() -> None:
    viewing = StreamCursor(0)
    told = [chunk(0, 9, seq=5), progress(5), receipt(6), progress(6)]
    assert [viewing.judge(event) for event in told] == [Verdict.NEWS] * 4
    assert viewing.judge(progress(7)) is Verdict.HOLE


def progress(seq: int) -> pb.Event:
    return pb.Event(seq=seq, progress=pb.Progress())


def test_a_state_tells_of_all_before_it_and_a_gap_of_the_chunks_that_are_missing_behind_it() -> None:
    viewing = StreamCursor(0)
    viewing.judge(chunk(0, 9, seq=5))
    state_elsewhere = pb.Event(seq=8, state=pb.Session())
    gap = pb.Event(gap=pb.Gap(first_frame=9, frames=24))
    told = [state_elsewhere, receipt(9), gap, receipt(12), chunk(33, 12, seq=14)]
    assert [viewing.judge(event) for event in told] == [Verdict.NEWS] * 5
    assert viewing.judge(receipt(16)) is Verdict.HOLE


def test_a_copy_that_knew_less_counts_on_from_what_it_says() -> None:
    viewing = StreamCursor(0)
    viewing.judge(chunk(0, 9, seq=5))
    viewing.judge(pb.Event(seq=3, state=pb.Session()))
    assert viewing.judge(chunk(9, 12, seq=4)) is Verdict.NEWS
    assert viewing.judge(receipt(6)) is Verdict.HOLE


def test_a_new_take_begins_at_frame_0_and_the_one_before_is_over() -> None:
    viewing = StreamCursor(0)
    viewing.judge(chunk(0, 9))
    assert viewing.judge(state(take=1)) is Verdict.NEWS
    assert viewing.judge(chunk(9, 12, take=0)) is Verdict.OLD
    assert viewing.judge(chunk(0, 9, take=1)) is Verdict.NEWS


def test_a_reset_that_nobody_saw_is_watched_from_its_beginning() -> None:
    viewing = StreamCursor(0)
    viewing.judge(chunk(0, 9))
    assert viewing.reopen() == 9
    assert viewing.judge(state(take=1)) is Verdict.HOLE
    assert viewing.reopen() == 0
    assert viewing.judge(state(take=1)) is Verdict.NEWS


def test_frames_that_are_not_kept_leave_a_gap_up_to_the_oldest() -> None:
    viewing = StreamCursor(0)
    viewing.judge(chunk(0, 9))
    gap = viewing.skip_to(pb.Session(oldest_frame=33))
    assert gap is not None
    assert (gap.gap.first_frame, gap.gap.frames) == (9, 24)
    assert viewing.reopen() == 33
    assert viewing.skip_to(pb.Session(oldest_frame=21)) is None


def test_waits_grow_until_patience_is_at_its_end() -> None:
    patience, now, waits = Backoff(5), 0.0, []
    while (wait := patience.wait_s(now)) is not None:
        waits.append(wait)
        now += wait
    assert waits == [0.05, 0.1, 0.2, 0.4, *[0.5] * 9]


def test_a_stream_that_stood_for_long_is_tried_again_from_the_beginning() -> None:
    patience = Backoff(5)
    assert patience.wait_s(100) == 0.05
    assert patience.wait_s(101) == 0.1
    assert patience.wait_s(200) == 0.05


@pytest.mark.parametrize("seconds", [1, 30])
def test_frames_satisfy(seconds: float) -> None:
    patience = Backoff(seconds)
    for now in range(100):
        assert patience.wait_s(now) == 0.05
        patience.satisfied()


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [(pb.STREAM_END_REASON_SESSION_ENDED, Verdict.NEWS), (pb.STREAM_END_REASON_TIME_LIMIT, Verdict.OLD)],
)
def test_the_end_of_a_stream_is_news_if_the_session_ends_with_it(reason: Any, verdict: Verdict) -> None:
    viewing = StreamCursor(0)
    viewing.judge(state(take=3))
    assert viewing.judge(pb.Event(end=pb.StreamEnd(reason=reason))) is verdict

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import LimitReached, SessionNotFound
from serving.session.applied_log import AppliedLog
from serving.session.applied_page import pack_page, unpack_page
from serving.session.types import PAGE, Applied
from serving.timeline.cue import Blend, Cue, Restyling, Transition
from tests.support.open_files import open_files
from tests.support.prompts import prompts

COUNTS = [0, 1, PAGE, 2 * PAGE, 2 * PAGE + 1, 3 * PAGE, 5 * PAGE + 7]


def entry(number: int, text: str = "a red balloon") -> Applied:
    """The cue of every second block."""
    return Applied(Cue(24 * number, Blend.of(f"{text} {number}")), 2 * number, 24 * number, f"c{number}", number)


def log_of(count: int) -> AppliedLog:
    return AppliedLog(map(entry, range(count)))


texts = prompts(30)
blends = st.lists(st.tuples(texts, st.floats(0.5, 1e6)), min_size=1, max_size=3).map(lambda p: Blend(tuple(p)))
transitions = st.none() | st.builds(Transition, st.integers(1, 1000), st.sampled_from(["linear", "slerp"]))
restylings = st.none() | st.builds(
    Restyling, st.none() | st.floats(0.001, 1), st.none() | st.booleans(), st.booleans(), st.booleans()
)
numbers = st.integers(1, 1 << 53)
cues = st.builds(Cue, numbers, blends | texts.map(Blend.of), transitions, restylings)
entries = st.builds(Applied, cues, numbers, numbers, texts, numbers)


@given(st.lists(entries, max_size=10))
def test_a_page_comes_out_of_its_bytes_as_it_was(page: list[Applied]) -> None:
    assert unpack_page(pack_page(page)) == tuple(page)


@pytest.mark.parametrize("count", COUNTS)
def test_a_log_has_what_was_put_into_it_in_order(count: int) -> None:
    log = log_of(count)
    assert (len(log), [*log]) == (count, [entry(number) for number in range(count)])
    assert log.last == (entry(count - 1) if count else None)
    assert log.held <= 2 * PAGE


@pytest.mark.parametrize(
    ("start", "count"), [(0, 5), (PAGE - 1, 2), (100, 3 * PAGE), (640, 100), (647, 1), (9999, 1)]
)
def test_a_page_may_begin_and_end_anywhere(start: int, count: int) -> None:
    wanted = [entry(number) for number in range(start, min(start + count, 647))]
    assert [*log_of(647).page(start, count)] == wanted


@pytest.mark.parametrize("kept", [0, 1, 255, 256, 257, 600, 646, 647])
def test_a_log_that_is_cut_goes_on_from_there(kept: int) -> None:
    log = log_of(647)
    log.replace_from(kept, [entry(number, "snow") for number in range(kept, kept + 300)])
    assert [*log] == [*map(entry, range(kept)), *(entry(number, "snow") for number in range(kept, kept + 300))]
    assert log.tail == AppliedLog(log).tail


def test_a_log_cannot_keep_more_than_it_has() -> None:
    with pytest.raises(ValueError, match="has 3 entries; 4 cannot be kept"):
        log_of(3).truncate(4)


@pytest.mark.parametrize("count", COUNTS)
def test_the_cues_before_a_block_are_counted(count: int) -> None:
    log = log_of(count)
    for number in (*range(0, count, 50), count):
        assert (log.count_before(2 * number), log.count_before(2 * number + 1)) == (number, min(number + 1, count))


@pytest.mark.parametrize("count", COUNTS)
def test_a_log_comes_out_of_its_tail_and_its_past(count: int) -> None:
    log = log_of(count)
    assert [*AppliedLog.of(log.tail, log.past())] == [*log]


def test_a_tail_without_its_past_is_no_log() -> None:
    with pytest.raises(ValueError, match="0 entries before number 128"):
        AppliedLog.of(log_of(257).tail)


def test_bytes_that_end_within_a_page_are_no_past() -> None:
    log = log_of(300)
    with pytest.raises(ValueError, match="of pages end at byte"):
        AppliedLog.of(log.tail, log.past()[:-1])


@pytest.mark.parametrize("count", [0, 100, 257, 500])
def test_a_copy_is_a_log_of_its_own(count: int) -> None:
    log = log_of(500)
    copied = log.copy(count)
    log.close()
    copied.append(entry(999))
    assert [*copied] == [*map(entry, range(count)), entry(999)]


def full_disk(*_: Any, **__: Any) -> int:
    raise OSError(28, "No space left on device")


def test_a_log_that_cannot_be_written_says_so_and_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(3 * PAGE)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_disk)
        with pytest.raises(LimitReached, match="cannot be written: No space left on device"):
            log.append(entry(3 * PAGE))
    assert [*log] == [*map(entry, range(3 * PAGE))]
    log.append(entry(3 * PAGE))
    assert [*log] == [*map(entry, range(3 * PAGE + 1))]


def test_half_a_page_that_was_written_before_the_disk_was_full_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, write = log_of(3 * PAGE), os.pwrite
    halves = iter([lambda file, data, at: write(file, data[: len(data) // 2], at), full_disk])
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *arguments: next(halves)(*arguments))
        with pytest.raises(LimitReached):
            log.append(entry(3 * PAGE))
    log.append(entry(3 * PAGE))
    assert [*log] == [*map(entry, range(3 * PAGE + 1))]


def test_a_short_log_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    assert len(log_of(2 * PAGE)) == 2 * PAGE
    with pytest.raises(LimitReached, match="cannot be opened"):
        log_of(2 * PAGE + 1)


def test_a_closed_log_gives_its_file_back_and_has_only_its_end() -> None:
    before, log = open_files(), log_of(300)
    assert open_files() == before + 1
    log.close()
    assert open_files() == before
    assert log.page(290, 10) == tuple(map(entry, range(290, 300)))
    with pytest.raises(SessionNotFound, match="has ended"):
        log.page(0, 10)


def test_a_log_that_nobody_holds_gives_its_file_back() -> None:
    before, log = open_files(), log_of(300)
    gone = weakref.ref(log)
    del log
    assert gone() is None
    assert open_files() == before

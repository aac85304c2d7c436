from __future__ import annotations

import pytest

from engines.cache.rolling_window import Lane, LaneWrite, RollingWindow

WINDOW = RollingWindow(6, 3, threshold=None, records=3)


def writes(window: RollingWindow, blocks: list[tuple[int, int]], passes: int = 1) -> list[LaneWrite]:
    """Of passes over blocks (position, frames), one after the other."""
    lane, made = Lane(left=passes), []
    for position, frames in blocks:
        for _ in range(passes):
            write, lane = window.place(lane, position, frames, passes)
            made.append(write)
    return made


def test_a_window_grows_by_what_is_new_and_then_stays_full() -> None:
    made = writes(WINDOW, [(0, 2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)])
    assert [write.filled for write in made] == [2, 3, 4, 5, 6, 6, 6]
    assert [write.end for write in made] == [2, 3, 4, 5, 6, 0, 0]
    assert [write.append for write in made] == [4, 4, 5, 6, 0, 0, 0]
    assert [write.full for write in made] == [False] * 5 + [True] * 2


def test_a_pass_over_the_same_frames_takes_their_slots() -> None:
    made = writes(WINDOW, [(0, 2), (2, 1), (2, 1)])
    assert [write.end for write in made] == [2, 3, 3]


def test_a_full_window_moves_on_with_the_last_of_the_passes_that_share_it() -> None:
    made = writes(WINDOW, [(0, 2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)], passes=2)
    # The last step of the block that fills the window finds it full: from then on steps and slots are out of step.
    assert [write.full for write in made[8:]] == [False, True, True, True, True, True]
    assert [write.pop for write in made[9:]] == [False, True, False, True, False]


def test_positions_that_are_set_back_change_nothing_in_a_full_window() -> None:
    blocks = [(0, 2), *((position, 1) for position in range(2, 8)), (5, 1), (6, 1)]
    assert [(write.full, write.filled) for write in writes(WINDOW, blocks)[-2:]] == [(True, 6), (True, 6)]
    assert [WINDOW.next_position(position, 8) for position in (7, 8, 9)] == [7, 5, 5]


def test_every_pass_writes_another_record_than_it_reads_and_has_a_stamp_of_its_own() -> None:
    made = writes(WINDOW, [(0, 2), (2, 1), (3, 1), (4, 1)])
    assert [(write.read, write.write, write.stamp) for write in made] == [
        (0, 1, 1),
        (1, 2, 2),
        (2, 0, 3),
        (0, 1, 4),
    ]


@pytest.mark.parametrize(("threshold", "tested"), [(0.2, [False, True]), (None, [False, False])])
def test_single_frames_are_compared_with_the_sink(threshold: float | None, tested: list[bool]) -> None:
    window = RollingWindow(6, 3, threshold, records=3)
    assert [write.test for write in writes(window, [(0, 2), (2, 1)])] == tested

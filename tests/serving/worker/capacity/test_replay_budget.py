from __future__ import annotations

import re

import pytest

from engines.config.geometry import BlockLengths
from serving.errors import LimitReached
from serving.worker.capacity.replay_budget import ReplayBudget, RestoreBudget

LENGTHS = BlockLengths()


def made(blocks: int, took_s: float, *, frame: int = 12_000, seconds: float = 20.0) -> None:
    """So many blocks have been made again in so long."""
    budget = ReplayBudget(seconds, frame, LENGTHS.block_at(frame + 1) - 1, LENGTHS, 100.0)
    budget.check(blocks, 100.0 + took_s)


def test_what_is_done_in_time_is_done() -> None:
    made(0, 0.0)
    made(8, 0.16)
    made(999, 19.9)


def test_what_would_take_too_long_is_refused_as_soon_as_that_is_seen() -> None:
    made(7, 0.7)
    with pytest.raises(LimitReached, match="generates 1000 blocks again, in about 100 s; at most 20 s are spent"):
        made(8, 0.8)


def test_blocks_that_grow_slower_end_it_when_the_time_is_over() -> None:
    with pytest.raises(LimitReached, match="at most 20 s"):
        made(3, 20.1)


def test_what_is_said_to_fit_fits() -> None:
    with pytest.raises(LimitReached) as refused:
        made(8, 0.8)
    found = re.search(r"frames up to (\d+) fit", str(refused.value))
    assert found is not None
    frame = int(found[1])
    assert frame > 1000
    made(8, 0.8, frame=frame)
    made(150, 15.0, frame=frame)


def test_of_the_steps_of_a_snapshot_as_many_fit_as_there_is_time_for() -> None:
    budget = RestoreBudget(20.0, 1000, 100.0)
    budget.check(7, 101.0)
    budget.check(8, 100.1)
    with pytest.raises(LimitReached, match=r"their 1000 steps .* 100 s, and at most 20 s .* about 160 steps"):
        budget.check(8, 100.8)

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.config.work import denoising_work
from serving.worker.capacity.stage_costs import MOST_KINDS, REMEMBERED, REMEMBERED_S, StageCosts

POCKET = preset("pocket")
OWN = POCKET.stream


def costs() -> StageCosts:
    found = StageCosts(OWN, lambda stream: denoising_work(POCKET.transformer, stream))
    found.measured(OWN, 0.129)
    return found


def sized(height: int, width: int) -> StreamConfig:
    return replace(OWN, height=height, width=width)


def test_nothing_is_expected_before_anything_was_measured() -> None:
    assert StageCosts(OWN, lambda stream: 1.0).expect(OWN, 0.0) == 0.0


@pytest.mark.parametrize(
    ("height", "width", "took"),
    [(32, 48, 0.028), (64, 96, 0.054), (128, 208, 0.250), (192, 320, 0.902), (240, 416, 2.038)],
)
def test_other_sizes_are_estimated_from_the_models_own(height: int, width: int, took: float) -> None:
    assert costs().expect(sized(height, width), 0.0) == pytest.approx(took, rel=0.15)


def test_fewer_steps_take_less() -> None:
    assert costs().expect(replace(OWN, steps=(1000, 500)), 0.0) == pytest.approx(0.129 * (0.15 + 0.85 * 3 / 5))


def test_the_seed_changes_nothing() -> None:
    assert costs().expect(replace(OWN, seed=99), 0.0) == 0.129


def test_blocks_that_are_made_correct_their_own_size_and_those_beside_it() -> None:
    found = costs()
    before = found.expect(sized(192, 336), 0.0)
    for block in range(REMEMBERED):
        found.observe(sized(192, 320), 2 * 0.98, float(block))
    assert found.expect(sized(192, 320), 16.0) == 1.96
    assert found.expect(sized(192, 336), 16.0) > 1.9 * before
    assert found.expect(OWN, 16.0) == 0.129


def test_one_block_that_was_held_up_changes_nothing() -> None:
    found = costs()
    for block, seconds in enumerate((0.13, 0.13, 9.0, 0.13)):
        found.observe(OWN, seconds, float(block))
    assert found.expect(OWN, 4.0) == 0.13


def test_what_was_slow_a_minute_ago_is_forgotten() -> None:
    found = costs()
    found.observe(OWN, 0.8, 0.0)
    assert found.expect(OWN, 1.0) == 0.8
    assert found.expect(OWN, REMEMBERED_S + 1.0) == 0.129


def test_a_first_measurement_that_was_disturbed_is_lowered_for_good() -> None:
    found = costs()
    found.measured(OWN, 3.0)
    for block in range(REMEMBERED):
        found.observe(OWN, 0.13, float(block))
    assert found.expect(OWN, 1e6) == 0.13


def test_sizes_without_end_are_not_all_remembered() -> None:
    found = costs()
    for width in range(MOST_KINDS + 50):
        found.observe(sized(16, 16 * (width + 1)), 1.0, 0.0)
    assert len(found._recent) == MOST_KINDS
    assert found.expect(OWN, 0.0) == 0.129

from __future__ import annotations

import pytest
import torch

from engines.sampling.flow_schedule import FlowSchedule, add_noise, predict_clean

LONGLIVE = FlowSchedule((1000, 750, 500, 250), 5.0)


def test_longlives_steps_are_warped_to_its_published_timesteps() -> None:
    assert [level.timestep for level in LONGLIVE.levels] == pytest.approx([1000.0, 937.5, 833.3333, 625.0])
    assert [level.sigma for level in LONGLIVE.levels] == pytest.approx([1.0, 0.9375, 0.8333333, 0.625])


def test_each_level_knows_the_next_and_the_last_one_that_it_leads_to_clean() -> None:
    sigmas = [level.sigma for level in LONGLIVE.levels]
    assert [level.next_sigma for level in LONGLIVE.levels] == [*sigmas[1:], 0.0]


def test_without_shift_a_step_is_its_timestep() -> None:
    levels = FlowSchedule((900, 100), 1.0).levels
    assert [level.timestep for level in levels] == pytest.approx([900.0, 100.0])


@pytest.mark.parametrize("sigma", [level.sigma for level in LONGLIVE.levels])
def test_the_flow_between_clean_and_noise_leads_back_to_clean(sigma: float) -> None:
    clean, noise = torch.randn(2, 3, 16, 4, 4)
    noisy = add_noise(clean, noise, sigma)
    torch.testing.assert_close(predict_clean(noisy, noise - clean, sigma), clean, atol=1e-5, rtol=0)


def test_the_first_step_starts_from_noise_alone() -> None:
    clean, noise = torch.randn(2, 1, 16, 2, 2)
    assert torch.equal(add_noise(clean, noise, LONGLIVE.levels[0].sigma), noise)


def test_a_step_may_be_the_timestep_itself_at_the_nearest_level_of_the_table() -> None:
    levels = FlowSchedule((700, 501), 8.0, "nearest").levels
    table = [8 * s / (1 + 7 * s) for s in (1 - i / 1000 for i in range(1000))]
    assert [level.timestep for level in levels] == [700.0, 501.0]
    assert [level.sigma for level in levels] == pytest.approx(
        [min(table, key=lambda s: abs(1000 * s - step)) for step in (700, 501)]
    )


def test_blocks_may_begin_just_below_pure_noise() -> None:
    levels = FlowSchedule((1000, 250), 5.0, start_level=1600 / 1601).levels
    assert levels[0][:2] == pytest.approx((1000 * 1600 / 1601, 1600 / 1601))
    assert levels[0].next_sigma == levels[1].sigma == pytest.approx(5 / 8)

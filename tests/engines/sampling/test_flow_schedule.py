from __future__ import annotations

import pytest
import torch

from engines.sampling.flow_schedule import FlowSchedule

LONGLIVE = FlowSchedule((1000, 750, 500, 250), 5.0)


def test_longlives_steps_are_warped_to_its_published_timesteps() -> None:
    assert LONGLIVE.timesteps == pytest.approx((1000.0, 937.5, 833.3333, 625.0))
    assert LONGLIVE.sigmas == pytest.approx((1.0, 0.9375, 0.8333333, 0.625))


def test_without_shift_a_step_is_its_timestep() -> None:
    assert FlowSchedule((900, 100), 1.0).timesteps == pytest.approx((900.0, 100.0))


@pytest.mark.parametrize("step", range(4))
def test_the_flow_between_clean_and_noise_leads_back_to_clean(step: int) -> None:
    clean, noise = torch.randn(2, 3, 16, 4, 4)
    noisy = LONGLIVE.add_noise(clean, noise, step)
    torch.testing.assert_close(LONGLIVE.predict_clean(noisy, noise - clean, step), clean, atol=1e-5, rtol=0)


def test_the_first_step_starts_from_noise_alone() -> None:
    clean, noise = torch.randn(2, 1, 16, 2, 2)
    assert torch.equal(LONGLIVE.add_noise(clean, noise, 0), noise)

"""Which samples the energy score takes for good ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.pocket.training.transformer.energy_score import EnergyScore

SCORE = EnergyScore(torch.ones(2), 0.0)


def latents(values: Tensor) -> Tensor:
    """Blocks of 3 frames, 2 channels, 4 x 4: all of one are of one value."""
    return values.view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 4, 4)


def drawn(spread: float, count: int = 4000) -> Tensor:
    return latents(spread * torch.randn(count))


def test_samples_that_are_spread_as_the_truth_is_score_best() -> None:
    torch.manual_seed(0)
    totals = [float(SCORE(drawn(spread), drawn(spread), drawn(1.0)).total) for spread in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert min(totals) == totals[2]


def test_samples_as_varied_as_the_truth_are_as_far_from_it_as_from_each_other() -> None:
    torch.manual_seed(0)
    score = SCORE(drawn(1.0), drawn(1.0), drawn(1.0))
    assert float(score.error) == pytest.approx(float(score.spread), rel=0.05)
    assert float(score.total) == pytest.approx(float(score.error - score.spread / 2))


def test_distances_are_those_of_patches_in_space_and_time() -> None:
    truth = torch.zeros(1, 3, 2, 4, 4)
    one = truth.clone()
    one[0, 0, :, :2, :2] = 2.0
    # One of twelve small patches, at 2; one large one, whose mean square is 4 / 12.
    expected = (2 / 12 + (4 / 12) ** 0.5) / 2
    assert float(SCORE(one, one, truth).error) == pytest.approx(expected, rel=2e-2)


def test_channels_count_by_their_energy() -> None:
    score, truth = EnergyScore(torch.tensor([3.0, 1.0]), 1.0), torch.zeros(1, 3, 2, 4, 4)
    errors = []
    for channel in range(2):
        one = truth.clone()
        one[:, :, channel] = 1.0
        errors.append(float(score(one, one, truth).error))
    assert errors[0] == pytest.approx(3**0.5 * errors[1])

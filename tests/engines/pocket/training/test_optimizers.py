from __future__ import annotations

import pytest
import torch
from torch import nn

from engines.config.presets import preset
from engines.pocket.training.optimizers import Muon, for_transformer, orthogonal, parameter_groups
from engines.pocket.training.team import Team
from engines.wan.transformer import CausalTransformer


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 40, 16), (2, 16, 40)], ids=str)
def test_an_update_is_close_to_orthogonal(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert 0.4 < values.min() < values.max() < 1.4


def test_the_size_of_a_gradient_does_not_matter() -> None:
    matrices = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(orthogonal(1e-4 * matrices), orthogonal(matrices), atol=0.05, rtol=0)


def test_muon_brings_matrices_and_convolutions_to_their_goal() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 4, 3, 3))]
    goals = [torch.randn_like(weight) for weight in weights]
    optimizer = Muon(weights, Team())

    def distance() -> torch.Tensor:
        return sum((w - g).square().mean() for w, g in zip(weights, goals, strict=True))  # type: ignore[return-value]

    before = distance().item()
    for step in range(120):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 120)
        optimizer.zero_grad()
        distance().backward()
        optimizer.step()
    assert distance() < 0.2 * before


def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else() -> None:
    transformer = CausalTransformer(preset("pocket").transformer)
    muon, adamw = for_transformer(transformer, Team())
    counts = [len([p for group in o.param_groups for p in group["params"]]) for o in (muon, adamw)]
    assert counts[0] == 6 * 10
    assert sum(counts) == len(list(transformer.parameters()))


def test_the_more_inputs_a_sum_has_the_slower_its_weights_move() -> None:
    layer = nn.Linear(256, 4)
    groups = {group["share"]: group["params"] for group in parameter_groups(layer.named_parameters())}
    assert groups.keys() == {0.25, 1.0}
    assert groups[0.25][0] is layer.weight

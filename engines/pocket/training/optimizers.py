"""How weights move: Muon for the matrices inside a network, AdamW for the rest.

Each group of parameters has a `share` of the stage's learning rate, which the run sets before every step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from engines.pocket.training.team import Team

UNSCALED_INPUTS = 64
"""Weights of sums of so many inputs learn at AdamW's full rate."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), for weights [outputs, inputs, ...].

    An update is as large as AdamW's would be: 0.2 x sqrt(the larger side) times an orthogonal matrix (Liu et al.
    2025). The processes of a team make a part of the updates each, and share them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], team: Team, momentum: float = 0.95) -> None:
        super().__init__([{"params": list(parameters), "share": 1.0}], {"lr": 0.0})
        self._team, self._momentum = team, momentum

    @torch.no_grad()
    @override
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move each parameter against the gradient that it holds."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._move(parameters, group["lr"])

    def _move(self, parameters: Sequence[nn.Parameter], rate: float) -> None:
        ahead = torch.stack([self._ahead(parameter) for parameter in parameters]).flatten(2)
        updates, mine = torch.zeros_like(ahead), self._team.mine(len(ahead))
        if mine.start < mine.stop:
            updates[mine] = orthogonal(ahead[mine])
        self._team.sum_(updates)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.add_(update.view_as(parameter), alpha=-rate * 0.2 * max(update.shape) ** 0.5)

    def _ahead(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum after this gradient."""
        assert parameter.grad is not None
        state = self.state[parameter]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - self._momentum)
        return parameter.grad.lerp(mean, self._momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices to [N, rows, columns], about: five Newton-Schulz steps in bf16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)).bfloat16()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], share: float = 1.0, decay: float = 0.01, *, scaled: bool = True
) -> AdamW:
    """AdamW for named parameters, at `share` of the stage's rate; `scaled` as `parameter_groups` says."""
    if scaled:
        groups = [{**group, "share": share * group["share"]} for group in parameter_groups(parameters)]
    else:
        groups = [{"params": [parameter for _, parameter in parameters], "share": share}]
    return AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=decay)


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Parameters by their share of the learning rate: the more inputs a sum has, the smaller its steps.

    Adam moves all of them at once by the same amount (Yang et al. 2022, "Tensor Programs V").
    """
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters:
        is_matrix = name.endswith("weight") and parameter.ndim > 1
        inputs = parameter[0].numel() if is_matrix else 1
        groups[min(1.0, UNSCALED_INPUTS / inputs)].append(parameter)
    return [{"params": found, "share": share} for share, found in groups.items()]


def for_transformer(network: nn.Module, team: Team) -> list[Optimizer]:
    """Muon for every matrix in the blocks, AdamW at 0.15 of its rate for the rest."""
    inner = {name: p for name, p in network.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    rest = [(name, p) for name, p in network.named_parameters() if name not in inner]
    return [Muon(inner.values(), team), adamw(rest, share=0.15)]

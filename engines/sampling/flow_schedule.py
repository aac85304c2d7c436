"""The few-step flow-matching schedule: which noise levels a block passes on its way to clean latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TRAINING_STEPS = 1000


class Level(NamedTuple):
    """Where a pass runs: its timestep, its level of noise, and that of the next step, 0 where the result is clean.

    A pass made for its keys and values alone takes no step, and has no levels.
    """

    timestep: float
    sigma: float = 0.0
    next_sigma: float = 0.0


CLEAN = Level(0.0)
"""A clean pass, and a KV recache."""


class FlowSchedule:
    """Denoising `steps` warped by `shift` (LongLive section 3; Self-Forcing's warped step list).

    Level s of the training table is shift x s / (1 + (shift - 1) x s), for s from 1 down to 1/1000; a timestep is
    1000 times its level. At level `sigma` latents are (1 - sigma) x clean + sigma x noise, and the network
    predicts the flow, noise - clean.
    """

    def __init__(self, steps: tuple[int, ...], shift: float) -> None:
        table = torch.linspace(1.0, 0.0, TRAINING_STEPS + 1)[:-1]
        table = shift * table / (1 + (shift - 1) * table)
        chosen = [TRAINING_STEPS - step for step in steps]
        timesteps, sigmas = (table * TRAINING_STEPS)[chosen].tolist(), table[chosen].tolist()
        self.levels = tuple(map(Level, timesteps, sigmas, [*sigmas[1:], 0.0]))

    def __len__(self) -> int:
        return len(self.levels)


def predict_clean(noisy: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """The clean latents that `flow` points to from `noisy` at level `sigma`; computed in fp64."""
    return (noisy.double() - sigma * flow.double()).to(noisy.dtype)


def add_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`clean` latents brought to level `sigma` with `noise`; computed in fp32."""
    return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)

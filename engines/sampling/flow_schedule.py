"""The few-step flow-matching schedule: which noise levels a block passes on its way to clean latents."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from engines.config.stream import StreamConfig

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
    """The levels of denoising steps, by the shifted table of flow matching (LongLive section 3).

    Level s of the table is shift x s / (1 + (shift - 1) x s), for s from 1 down to 1/1000; its timestep is 1000
    times that. At level `sigma` latents are (1 - sigma) x clean + sigma x noise, and the network predicts their
    flow, noise - clean.

    Args:
        steps: denoising steps, on the scale 1000 to 1.
        shift: of the table.
        rule: a step is "warped" to the timestep of its own entry (Self-Forcing, LongLive), or is the timestep
            itself, with the level of the entry whose timestep is "nearest" (StreamDiffusionV2).
        start_level: of step 1000 (rCM begins at 1600/1601).

    """

    def __init__(
        self,
        steps: tuple[int, ...],
        shift: float,
        rule: Literal["warped", "nearest"] = "warped",
        start_level: float = 1.0,
    ) -> None:
        table = torch.linspace(1.0, 0.0, TRAINING_STEPS + 1)[:-1]
        table = shift * table / (1 + (shift - 1) * table)
        times = table * TRAINING_STEPS
        if rule == "warped":
            entries = [TRAINING_STEPS - step for step in steps]
            timesteps = times[entries].tolist()
        else:
            entries = [int((times - step).abs().argmin()) for step in steps]
            timesteps = [float(step) for step in steps]
        sigmas = table[entries].tolist()
        if steps[0] == TRAINING_STEPS and start_level != 1:
            sigmas[0], timesteps[0] = start_level, start_level * TRAINING_STEPS
        self.levels = tuple(map(Level, timesteps, sigmas, [*sigmas[1:], 0.0]))

    @classmethod
    def of(cls, config: StreamConfig, block: int) -> Self:
        """That of a block of a stream."""
        return cls(config.steps_of(block), config.shift, config.levels, config.start_level)

    def __len__(self) -> int:
        return len(self.levels)


def predict_clean(noisy: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """The clean latents that `flow` points to from `noisy` at level `sigma`; computed in fp64."""
    return (noisy.double() - sigma * flow.double()).to(noisy.dtype)


def add_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`clean` latents brought to level `sigma` with `noise`; computed in fp32."""
    return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)

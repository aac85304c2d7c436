"""The few-step flow-matching schedule: which noise levels a block passes on its way to clean latents."""

from __future__ import annotations

import torch
from torch import Tensor

TRAINING_STEPS = 1000

CLEAN_TIMESTEP = 0.0
"""The timestep of a clean pass and of a KV recache."""


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
        self.sigmas: tuple[float, ...] = tuple(table[chosen].tolist())
        self.timesteps: tuple[float, ...] = tuple((table * TRAINING_STEPS)[chosen].tolist())

    def __len__(self) -> int:
        return len(self.timesteps)

    def predict_clean(self, noisy: Tensor, flow: Tensor, step: int) -> Tensor:
        """The clean latents that `flow` points to from `noisy` at `step`; computed in fp64."""
        return (noisy.double() - self.sigmas[step] * flow.double()).to(noisy.dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """`clean` latents brought back to the level of `step` with fresh `noise`; computed in fp32."""
        sigma = self.sigmas[step]
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)

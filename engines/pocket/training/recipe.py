"""Settings and budgets of the stages of the pocket model's training: on a GPU, on a CPU, in a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engines.errors import ConfigError
from engines.pocket.training.text_encoder import TextTraining
from engines.pocket.training.trainer import Budget
from engines.pocket.training.transformer.dataset import Curriculum, Reuse
from engines.pocket.training.transformer.flow_matching import FlowTraining
from engines.pocket.training.transformer.restyling import Restyling
from engines.pocket.training.transformer.self_forcing import SelfForcingTraining
from engines.pocket.training.vae import AutoencoderTraining, LossWeights

LITTLE = 0.04
"""Variety of the world that a model meets first: all streams of a scene begin at about the same place."""

FIRST = Curriculum(first=1, start=0, rolled=0, switched=0)
MIXED = Curriculum(first=0.2, start=0.3, rolled=0.2, switched=0.3)

IDLE = 100_000
"""Minutes that end no stage: on a machine that others use too, its steps do."""

STEADY = LossWeights(boundary=1.5, boundary_squared=6, flicker=1.5)
"""For the end: a latent's first frame must follow on the last of the one before."""


@dataclass(frozen=True)
class Recipe:
    """The settings of all stages by their names, in order. First blocks come first: they are cheap."""

    autoencoder: Mapping[str, AutoencoderTraining]
    text: TextTraining
    flow: Mapping[str, FlowTraining]
    rollouts: Mapping[str, SelfForcingTraining]

    @property
    def stages(self) -> tuple[str, ...]:
        """All names, in order."""
        return (*self.autoencoder, "text", *self.transformer_stages)

    @property
    def transformer_stages(self) -> tuple[str, ...]:
        """Names of those that train the transformer."""
        return (*self.flow, *self.rollouts)


def _little(curriculum: Curriculum) -> Curriculum:
    return replace(curriculum, variety=LITTLE)


RECIPES = {
    "gpu": Recipe(
        {
            "autoencoder": AutoencoderTraining(Budget(12_000, 4, 2e-3, 300, hold=0.4), batch=32, crop=(48, 80)),
            "autoencoder-whole": AutoencoderTraining(
                Budget(6_000, 3, 5e-4), batch=8, crop=(96, 160), subject=3, weights=STEADY
            ),
        },
        TextTraining(Budget(steps=6_000, minutes=1.2, rate=1e-3), batch=256),
        {
            "first-blocks": FlowTraining(Budget(8_000, 3, 2e-2, hold=0.2), FIRST, batch=256, reuse=Reuse(4096, 8)),
            "stretches": FlowTraining(Budget(30_000, 8.5, 1e-2, average=0.9995), MIXED, batch=448),
        },
        {"self-forcing": SelfForcingTraining(Budget(4_000, 7, 3e-3), 32, blocks=8, restyling=Restyling(batch=96))},
    ),
    "cpu": Recipe(
        {
            "autoencoder": AutoencoderTraining(Budget(12_000, IDLE, 2e-3, 300, hold=0.4), batch=4, crop=(48, 80)),
            "autoencoder-subjects": AutoencoderTraining(
                Budget(10_000, IDLE, 1.3e-3), batch=2, crop=(96, 80), subject=3, weights=LossWeights(edges=0.4)
            ),
            "autoencoder-whole": AutoencoderTraining(
                Budget(8_000, IDLE, 5e-4, average=0.998), batch=1, crop=(96, 160), subject=3, weights=STEADY
            ),
        },
        TextTraining(Budget(steps=4_000, minutes=IDLE, rate=2e-3, average=0.995)),
        {
            "first-blocks": FlowTraining(
                Budget(1_600, IDLE, 2e-2, 60, average=0.998, hold=0.2), _little(FIRST), 16, Reuse(2048, 6)
            ),
            "stretches": FlowTraining(Budget(3_000, IDLE, 8e-3, 60, average=0.998, hold=0.2), _little(MIXED), 28),
        },
        {
            "self-forcing": SelfForcingTraining(
                Budget(1_300, IDLE, 1.5e-3, 30, average=0.995, hold=0.3), batch=2, blocks=5, variety=LITTLE
            ),
            "self-forcing-varied": SelfForcingTraining(
                Budget(4_000, IDLE, 3e-3, average=0.998, hold=0.2), batch=2, blocks=8, restyling=Restyling()
            ),
        },
    ),
    "test": Recipe(
        {
            "autoencoder": AutoencoderTraining(
                Budget(3, 1, 1e-3), batch=1, frames=5, crop=(32, 32), kept=4, start_clips=8
            ),
            "autoencoder-whole": AutoencoderTraining(
                Budget(2, 1, 1e-3), batch=1, frames=5, crop=(96, 160), kept=4, start_clips=8, subject=1
            ),
        },
        TextTraining(Budget(3, 1, 1e-3), batch=4),
        {
            "first-blocks": FlowTraining(Budget(2, 1, 1e-3), FIRST, batch=2, reuse=Reuse(2)),
            "stretches": FlowTraining(Budget(4, 1, 1e-3), MIXED, batch=7, reuse=Reuse(1)),
        },
        {
            "self-forcing": SelfForcingTraining(
                Budget(2, 1, 1e-4),
                batch=1,
                blocks=2,
                reuse=Reuse(1),
                restyling=Restyling(1 / 2, batch=1, frames=3, reuse=Reuse(1)),
            )
        },
    ),
}
"""By where they run. "gpu" takes three pieces of nine minutes and has not been run; "cpu" about twelve hours of
two processes, each with a core of its own."""


def recipe(name: str) -> Recipe:
    """The recipe called `name`; ConfigError lists the known ones if there is none."""
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}") from None

"""How large the pocket model is and how long each stage of its training takes: on a GPU, on a CPU, in a test."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import ConfigError
from engines.pocket.training.dataset import Curriculum
from engines.pocket.training.flow_matching import FlowTraining
from engines.pocket.training.self_forcing import SelfForcingTraining
from engines.pocket.training.text_encoder import TextTraining
from engines.pocket.training.trainer import Budget
from engines.pocket.training.vae import AutoencoderTraining

LITTLE = 0.04
"""Variety of the world for whom a processor trains: its streams all begin at about the same place."""

MIXED = Curriculum(first=0.1, start=0.4, rolled=0.25, switched=0.25)


@dataclass(frozen=True)
class Recipe:
    """The settings of all stages. The transformer learns first blocks first: they are cheap."""

    autoencoder: AutoencoderTraining
    text: TextTraining
    first_blocks: FlowTraining
    flow: FlowTraining
    self_forcing: SelfForcingTraining


RECIPES = {
    "gpu": Recipe(
        AutoencoderTraining(Budget(steps=12_000, minutes=5, rate=1e-3, warm_up=500), batch=48, crop=(96, 160)),
        TextTraining(Budget(steps=6_000, minutes=1.2, rate=1e-3), batch=256),
        FlowTraining(Budget(4_000, 2.3, 1e-3), Curriculum(1, 0, 0, 0), batch=512),
        FlowTraining(Budget(30_000, 10.5, 8e-4, average=0.9995), MIXED, batch=128),
        SelfForcingTraining(Budget(4_000, 7.5, 1e-4), batch=64, blocks=30),
    ),
    "cpu": Recipe(
        AutoencoderTraining(Budget(steps=100_000, minutes=15, rate=5e-4, average=0.997), batch=3, frames=9),
        TextTraining(Budget(steps=100_000, minutes=4, rate=2e-3, average=0.995)),
        FlowTraining(
            Budget(100_000, 45, 3e-3, average=0.998),
            Curriculum(1, 0, 0, 0, variety=LITTLE),
            batch=16,
            repeats=3,
            standout=2,
        ),
        FlowTraining(
            Budget(100_000, 20, 2e-3, average=0.997),
            Curriculum(0.2, 0.3, 0.2, 0.3, variety=LITTLE),
            batch=8,
            repeats=2,
            standout=2,
        ),
        SelfForcingTraining(
            Budget(100_000, 22, 6e-4, average=0.99), batch=4, blocks=8, from_noise=0.6, variety=LITTLE
        ),
    ),
    "test": Recipe(
        AutoencoderTraining(Budget(3, 1, 1e-3), batch=1, frames=5, crop=(32, 32)),
        TextTraining(Budget(3, 1, 1e-3), batch=4),
        FlowTraining(Budget(2, 1, 1e-3), Curriculum(1, 0, 0, 0), batch=2),
        FlowTraining(Budget(4, 1, 1e-3), MIXED, batch=1),
        SelfForcingTraining(Budget(2, 1, 1e-4), batch=1, blocks=2),
    ),
}
"""By where they run. "gpu" takes three pieces of nine minutes and has not been run; "cpu" is for one core."""


def recipe(name: str) -> Recipe:
    """The recipe called `name`; ConfigError lists the known ones if there is none."""
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}") from None

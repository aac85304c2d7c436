"""The sizes of pictures that are measured, and the seed of all weights."""

from __future__ import annotations

from dataclasses import replace

from engines.config.model import ModelConfig

SEED = 0


def frame_size(text: str) -> tuple[int, int]:
    """Height and width from HxW."""
    height, width = map(int, text.split("x"))
    return height, width


def resized(model: ModelConfig, size: tuple[int, int] | None) -> ModelConfig:
    """The model with streams of height and width `size`; as it is if that is None."""
    if size is None:
        return model
    height, width = size
    return replace(model, stream=replace(model.stream, height=height, width=width))

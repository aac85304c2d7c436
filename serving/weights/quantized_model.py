"""Quantized models: folders that `longtake quantize` has made, beside the models that they were made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from engines.config.model import ModelConfig
from engines.config.presets import PRESETS, preset
from engines.config.validation import require
from engines.errors import ConfigError
from engines.loading.quantized_file import QUANTIZED_FILE, QuantizedHeader
from engines.video.builder import require_video
from serving.config import ServerConfig
from serving.weights.catalog import models_folder


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized transformer; all else of the model is that of `base`."""

    file: Path
    header: QuantizedHeader

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That in `folder`. Raises WeightsError if its file is damaged, or not there."""
        file = folder / QUANTIZED_FILE
        return cls(file, QuantizedHeader.read(file))

    @property
    def base(self) -> str:
        """The model whose transformer it is."""
        return self.header.model

    @property
    def config(self) -> ModelConfig:
        """That of its base, with a quantized transformer. Raises ConfigError if Longtake knows no such base."""
        config = preset(self.base)
        return replace(config, transformer=replace(config.transformer, quantization=self.header.recipe))


def find_quantized(name: str, models: Path) -> QuantizedModel | None:
    """The quantized model in the folder `name`, or in the one called so in `models`; None if there is none.

    Raises WeightsError if its file is damaged.
    """
    if name in PRESETS:
        return None
    for folder in (models / name, Path(name)):
        if (folder / QUANTIZED_FILE).is_file():
            return QuantizedModel.read(folder)
    return None


def quantized_models(models: Path) -> list[Path]:
    """Folders of quantized models in `models`, by name."""
    return sorted(file.parent for file in models.glob(f"*/{QUANTIZED_FILE}"))


def served_model(config: ServerConfig) -> ModelConfig:
    """The model that a server serves; where graphs run its denoiser it restyles no videos.

    Raises as `model_config`, and ConfigError for a model that only restyles videos by graphs, and for steps of
    restyling where there is none.
    """
    model = model_config(config.model, models_folder(config.models_dir))
    if config.denoiser_engine != "torch":
        remedy = "which graphs of a denoiser do not; say --denoiser-engine torch"
        require(not model.needs_video, f"{model.name} only restyles videos, {remedy}")
        model = replace(model, video=None)
    if not config.video_steps:
        return model
    return replace(model, video=replace(require_video(model), steps=config.video_steps))


def model_config(name: str, models: Path) -> ModelConfig:
    """The model called `name`, one that Longtake knows or a quantized one. Raises ConfigError if it is neither."""
    if quantized := find_quantized(name, models):
        return quantized.config
    try:
        return preset(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; nor is there {QUANTIZED_FILE} in {models / name} or {name}") from None

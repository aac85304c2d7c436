"""Quantized transformers to test with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.config.stream import StreamConfig
from engines.loading.loader import load_model
from engines.loading.model import Model
from engines.loading.quantized_file import QUANTIZED_FILE, QuantizedHeader, write_quantized
from engines.pocket.model_files import model_files
from engines.quantization.calibration import calibrate
from engines.quantization.inputs import InputStatistics
from engines.quantization.quantizer import quantized_copy
from engines.quantization.recipes import default_recipe
from engines.streaming.builder import EngineConfig, build_generator
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from engines.wan.quantized_linear import FORMATS
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import EAGER, KernelBackends

POCKET = preset("pocket")

INT8 = QuantizationConfig("int8", 0.5, "compensated")
"""In all layers that can have it."""

POCKET_INT8 = default_recipe("int8", POCKET)
"""What `longtake quantize pocket --to int8` makes."""


def pocket(dtype: torch.dtype = torch.float32) -> Model:
    return load_model(POCKET, model_files(), "cpu", dtype).model


def encoded(model: Model, texts: Sequence[str]) -> list[Prompt]:
    loaded = load_model(POCKET, model_files(), "cpu", torch.float32)
    encoder = PromptEncoder(loaded.tokenizer, loaded.model.text_encoder, len(texts))
    return [encoder.encode(text) for text in texts]


def write_pocket(
    folder: Path, recipe: QuantizationConfig = POCKET_INT8, base: str = "pocket", loras: tuple[str, ...] = ()
) -> None:
    """The pocket model in 8 bits as `longtake quantize` makes it, after a short look; said to be `base`."""
    folder.mkdir(parents=True)
    model, statistics = pocket(), InputStatistics()
    if recipe.smoothing or recipe.rounding == "compensated":
        prompts = encoded(model, ["a red balloon over hills at noon", "a blue boat on the sea at night"])
        statistics = calibrate(model, prompts, replace(POCKET.stream, height=48, width=80), blocks=2)
    header = QuantizedHeader(base, recipe, "source", loras, "", "Apache-2.0", "0.1")
    state = quantized_state(model.transformer, recipe, statistics)
    write_quantized(folder / QUANTIZED_FILE, state, header, torch.float16)


def quantized_config(config: ModelConfig, recipe: QuantizationConfig) -> ModelConfig:
    return replace(config, transformer=replace(config.transformer, quantization=recipe))


def quantized_state(
    transformer: CausalTransformer, recipe: QuantizationConfig, statistics: InputStatistics | None = None
) -> dict[str, Tensor]:
    """Of a transformer that stays as it is."""
    return quantized_copy(transformer, recipe, statistics or InputStatistics()).state_dict()


def quantized(model: Model, recipe: QuantizationConfig, statistics: InputStatistics) -> Model:
    """`model` with its transformer quantized, in fp32 beside."""
    transformer = quantized_copy(model.transformer, recipe, statistics)
    return Model.of(quantized_config(model.config, recipe), transformer, model.vae, None)


def unrounded(model: Model, statistics: InputStatistics, monkeypatch: pytest.MonkeyPatch) -> Model:
    """`model` smoothed as for INT8, with nothing rounded."""

    def rows(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.ones(x.shape[:-1])

    def linear(x: Tensor, scales: Tensor, weight: Tensor, _: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setitem(
        FORMATS, "int8", FORMATS["int8"]._replace(dtype=torch.float32, quantize=rows, linear=linear)
    )
    return quantized(model, replace(INT8, rounding="nearest"), statistics)


def rolled_out(
    model: Model, stream: StreamConfig, prompts: Sequence[Prompt], blocks: int, kernels: KernelBackends = EAGER
) -> Tensor:
    """Latents [prompts, blocks, frames, ...] fp32 of a stream of each prompt; the last two follow the next one."""
    generator = build_generator(
        model, EngineConfig(stream, sessions=len(prompts), backends=kernels, decodes=False)
    )
    streams = [generator.open(replace(stream, seed=seed)) for seed in range(len(prompts))]
    made = []
    for block in range(blocks):
        if block in (0, blocks - 2):
            for number, opened in enumerate(streams):
                generator.set_prompt(opened, prompts[(number + (block > 0)) % len(prompts)])
        made.append(torch.stack([block.latents.float() for block in generator.generate(streams)]))
    return torch.stack(made, dim=1)


def relative_errors(latents: Tensor, wanted: Tensor) -> Tensor:
    """Of each stream's blocks, [prompts, blocks]."""
    return (latents - wanted).flatten(2).norm(dim=2) / wanted.flatten(2).norm(dim=2)

"""The graphs of a loaded model's stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.config.video_stream import AnyStreamConfig
from engines.export import decoders, denoiser, text
from engines.export.decoders import DecoderCall, export_decoder
from engines.export.denoiser import DenoiserCall, denoiser_calls, export_denoiser
from engines.export.graph import Stage, StageGraph
from engines.export.quantized_convs import Ranges, int8_name, int8_recipe, quantize_convs
from engines.export.text import LENGTHS, export_text_encoder, text_name
from engines.loading.fingerprint import weights_hash
from engines.loading.model import Autoencoder, Model, Network

STAGE_NETWORKS: dict[Stage, Network] = {"decoder": "codec", "text": "text_encoder", "denoiser": "transformer"}
"""What has to be loaded for a stage."""

PLAN_DTYPES: dict[Stage, torch.dtype] = {
    "decoder": torch.float16, "text": torch.bfloat16, "denoiser": torch.bfloat16
}  # fmt: skip
"""What a stage's plan computes in, but for norms."""

CPU_DTYPES: dict[Stage, torch.dtype] = dict.fromkeys(PLAN_DTYPES, torch.float32)
"""The same where no card runs it."""


def source_dtype(stage: Stage, *, on_cpu: bool) -> torch.dtype:
    """What a stage's weights are loaded in, and known by: what is rounded twice has another fingerprint."""
    return torch.float32 if on_cpu or stage == "decoder" else PLAN_DTYPES[stage]


_RECIPES: dict[Stage, dict[torch.dtype, str]] = {
    "decoder": decoders.RECIPES, "text": text.RECIPES, "denoiser": denoiser.RECIPES
}  # fmt: skip


def plan_dtype(stage: Stage, *, on_cpu: bool) -> torch.dtype:
    """What a stage's plans compute in."""
    return (CPU_DTYPES if on_cpu else PLAN_DTYPES)[stage]


def recipe_of(stage: Stage, *, on_cpu: bool, int8_convs: bool = False) -> str:
    """What a stage's graphs say of the numbers that compute them."""
    recipe = _RECIPES[stage][plan_dtype(stage, on_cpu=on_cpu)]
    return int8_recipe(recipe) if int8_convs else recipe


class StageExport(NamedTuple):
    """A graph that is yet to be written: its name, and what writes it to a folder."""

    name: str
    write: Callable[[Path], StageGraph]


def stage_exports(
    model: Model, stage: Stage, stream: StreamConfig, dtype: torch.dtype, *, every_pass: bool = False
) -> list[StageExport]:
    """All graphs of a stage, which compute in `dtype`; what they are named after is their network as it is loaded.

    Of a decoder those of all kinds of stream that the model makes, in the size of `stream`; of a denoiser those of
    `planned_passes`. Raises as that; writing one as `export_graph`, and ConfigError for a dtype that will not do
    for the stage.
    """
    match stage:
        case "decoder":
            return decoder_exports(model.vae, streams_of(model.config, stream.height, stream.width), dtype)
        case "text":
            encoder, weights = model.text_encoder, weights_hash(model.text_encoder)
            return [
                StageExport(
                    text_name(length), partial(export_text_encoder, encoder, length, weights=weights, dtype=dtype)
                )
                for length in text_lengths(encoder.config.text_len)
            ]
        case "denoiser":
            transformer, weights = model.transformer, weights_hash(model.transformer)
            return [
                StageExport(call.name, partial(export_denoiser, transformer, call, weights=weights, dtype=dtype))
                for call in planned_passes(stream, every=every_pass)
            ]


def planned_passes(stream: StreamConfig, *, every: bool) -> list[DenoiserCall]:
    """Those that plans run: each has all the weights, so of a card's there is one, over a full window.

    Raises ConfigError as `denoiser_calls`.
    """
    calls = denoiser_calls(stream)
    return calls if every else [DenoiserCall.of(stream)]


def streams_of(model: ModelConfig, height: int, width: int) -> list[AnyStreamConfig]:
    """One of each kind that a model makes, of pictures of this size."""
    return [replace(stream, height=height, width=width) for stream in model.streams]


def decoder_exports(
    codec: Autoencoder, streams: Sequence[AnyStreamConfig], dtype: torch.dtype
) -> list[StageExport]:
    """All graphs of a decoder of such streams; otherwise as `stage_exports`."""
    weights = weights_hash(codec)
    return [
        StageExport(call.name, partial(export_decoder, codec, call, weights=weights, dtype=dtype))
        for call in decoder_calls(streams)
    ]


def with_int8_convs(export: StageExport, ranges: Ranges) -> StageExport:
    """The same graph with its convolutions in INT8, by `ranges` of what they read; raises as `quantize_convs`."""

    def write(folder: Path) -> StageGraph:
        return quantize_convs(export.write(folder.with_name(f"{folder.name}-whole")), ranges, folder)

    return StageExport(int8_name(export.name), write)


def decoder_calls(streams: Sequence[AnyStreamConfig]) -> list[DecoderCall]:
    """Of whole blocks of streams of one size, and of single latent frames, of which any number can be made."""
    begun = sorted({1, *(stream.blocks.first for stream in streams)})
    steady = sorted({1, *(stream.blocks.later for stream in streams)})
    kinds = [*((True, frames) for frames in begun), *((False, frames) for frames in steady)]
    return [DecoderCall(first, frames, streams[0].height, streams[0].width) for first, frames in kinds]


def text_lengths(longest: int) -> tuple[int, ...]:
    """Tokens of the graphs of an encoder that takes so many at most."""
    return (*(length for length in LENGTHS if length < longest), longest)

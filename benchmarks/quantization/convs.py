"""INT8 convolutions in decoders: their ranges in the pocket model's streams, and what they cost its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.quantization.loss import decibels, decoded
from benchmarks.quantization.prompts import shown_prompts
from benchmarks.quantization.rollout import Take
from engines.bindings.decoder import GraphDecoder
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.stage_session import StageSession
from engines.config.stream import StreamConfig
from engines.export.decoders import Codec, export_decoder
from engines.export.graph import StageGraph
from engines.export.quantized_convs import Ranges, quantize_convs
from engines.loading.stage_graphs import decoder_calls
from engines.quantization.conv_ranges import conv_ranges
from engines.runner.eager import EagerRunner
from serving.cli.weights.quantize import read_prompts
from serving.weights.catalog import models_folder
from serving.weights.loader import POCKET, OpenedModel, open_model

CPU = torch.device("cpu")

WATCHED_BLOCKS, SHOWN_STREAMS, SHOWN_BLOCKS = 5, 8, 6


class PocketStreams:
    """The pocket model, with streams to watch a decoder with and others to see what it lost."""

    def __init__(self) -> None:
        self.opened: OpenedModel = open_model(POCKET, models_folder(), CPU, torch.float32)

    @cached_property
    def watched(self) -> list[Tensor]:
        """Latents of blocks, [streams, frames, ...]."""
        return self._latents(read_prompts(None, self.opened.model.config), WATCHED_BLOCKS)

    def loss(self) -> dict[str, Any]:
        """PSNR of the pictures by INT8 convolutions, of each stream's blocks, against those of PyTorch in fp32."""
        codec, shown = self.opened.model.vae, self._latents(shown_prompts(POCKET, SHOWN_STREAMS), SHOWN_BLOCKS)
        ranges = conv_ranges(codec, in_one_piece(self.watched))
        with TemporaryDirectory() as folder:
            made = decoded(self._int8_decoder(codec, ranges, Path(folder)), shown, CPU)
        return {"convolutions": len(ranges)} | decibels(made, decoded(codec, shown, CPU))

    def _latents(self, texts: Sequence[str], blocks: int) -> list[Tensor]:
        prompts = [self.opened.prompts.encode(text) for text in texts]
        model = self.opened.model
        return Take(model.config.stream, prompts, blocks).roll_out(
            EagerRunner(model.transformer), model.transformer
        )

    def _int8_decoder(self, codec: Codec, ranges: Ranges, folder: Path) -> GraphDecoder:
        graphs = int8_graphs(codec, self.opened.model.config.stream, ranges, torch.float32, folder)
        sessions = [StageSession(OnnxRuntime(graph, graph.path, torch.get_num_threads()), CPU) for graph in graphs]
        return GraphDecoder(sessions, codec.decoder_receptive_field, len(codec.start_decoding().frames))


def in_one_piece(blocks: Sequence[Tensor], streams: int | None = None) -> list[Tensor]:
    """Latents [1, frames, ...] of each stream, or of the first `streams`."""
    return [each.unsqueeze(0) for each in torch.cat(list(blocks), dim=1)[:streams]]


def int8_graphs(
    codec: Codec, stream: StreamConfig, ranges: Ranges, dtype: torch.dtype, folder: Path
) -> list[StageGraph]:
    """All graphs of a decoder with its convolutions in INT8."""
    return [
        quantize_convs(
            export_decoder(codec, call, folder / f"{call.name}-whole", "", dtype), ranges, folder / call.name
        )
        for call in decoder_calls(stream)
    ]

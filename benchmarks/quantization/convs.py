"""INT8 convolutions in decoders: their ranges in the pocket model's streams, and what they cost its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.quantization.prompts import shown_prompts
from benchmarks.quantization.rollout import Take
from engines.quantization.conv_ranges import conv_ranges
from engines.quantization.picture_loss import int8_conv_loss
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
        codec, stream = self.opened.model.vae, self.opened.model.config.stream
        shown = in_one_piece(self._latents(shown_prompts(POCKET, SHOWN_STREAMS), SHOWN_BLOCKS))
        ranges = conv_ranges(codec, in_one_piece(self.watched))
        return {"convolutions": len(ranges)} | asdict(int8_conv_loss(codec, stream, ranges, shown))

    def _latents(self, texts: Sequence[str], blocks: int) -> list[Tensor]:
        prompts = [self.opened.prompts.encode(text) for text in texts]
        model = self.opened.model
        return Take(model.config.stream, prompts, blocks).roll_out(
            EagerRunner(model.transformer), model.transformer
        )


def in_one_piece(blocks: Sequence[Tensor], streams: int | None = None) -> list[Tensor]:
    """Latents [1, frames, ...] of each stream, or of the first `streams`."""
    return [each.unsqueeze(0) for each in torch.cat(list(blocks), dim=1)[:streams]]

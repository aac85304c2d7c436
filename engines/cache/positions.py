"""The RoPE turns of a pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.window import SlotMapping
from engines.config.stream import StreamConfig
from kernels.attention.rope import RopeTable


class PassPositions(NamedTuple):
    """RoPE turns of a pass, each [tokens, channels / 2]. `sink_queries` where they differ from `queries`."""

    keys: Tensor
    queries: Tensor
    sink_queries: Tensor | None

    @classmethod
    def of(cls, grid: RopeTable, placement: SlotMapping, config: StreamConfig) -> PassPositions:
        """Absolute RoPE knows stream positions only; relative RoPE counts the sink's by the window."""
        stream = grid.freqs_cis(_frames(placement.first_block, placement, config))
        rolled = placement.first_block != placement.window_block
        if config.rope == "absolute" or not rolled or config.sink_blocks == 0:
            return cls(stream, stream, None)
        window = grid.freqs_cis(_frames(placement.window_block, placement, config))
        in_sink = sum(slot < config.sink_blocks for slot in placement.slots) * config.block_tokens
        return cls(torch.cat([window[:in_sink], stream[in_sink:]]), stream, window)


def _frames(first_block: int, placement: SlotMapping, config: StreamConfig) -> range:
    start = first_block * config.block_frames
    return range(start, start + len(placement.slots) * config.block_frames)

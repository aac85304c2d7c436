"""How attention over windows is cut up: tiles of queries by keys on each chip, and splits of a row's keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.kv_view import KVView
from kernels.attention.lse_merge import MERGE_STEPS
from kernels.tiles import ARCHITECTURES, FP16_SUMS, INTERPRETER, Tile, Tiles, architecture, tile_for

MAX_SPLITS = 8


@dataclass(frozen=True)
class SplitConfig:
    """How the work is cut: the tile, and into how many splits each row's keys.

    With `descriptors` keys and values are copied by TMA, from descriptors that each program makes: one made by the
    host would hold one run's address, and the runs of a batch are told apart on the device.
    """

    tile: Tile
    num_splits: int = 1
    descriptors: bool = False


# What ptxas 12.9 leaves without a spill, for triton 3.6 and 3.9: benchmarks/results/kernel_table.json.
TILES_16_BIT: Tiles = {
    INTERPRETER: Tile(32, 32, warps=4),
    80: Tile(128, 64, warps=8, stages=3),
    89: Tile(128, 64, warps=8, stages=2),
    90: Tile(128, 128, warps=8, stages=2),
    100: Tile(128, 64, warps=8, stages=3),
    120: Tile(128, 64, warps=8, stages=2),
}

TILES_INT8: Tiles = {
    INTERPRETER: Tile(32, 32, warps=4),
    80: Tile(128, 64, warps=8, stages=3),
    89: Tile(128, 64, warps=8, stages=2),
    90: Tile(128, 128, warps=8, stages=2),
    100: Tile(128, 64, warps=8, stages=3),
    120: Tile(128, 32, warps=8, stages=2),
}

TILES_MIXED: Tiles = {
    **TILES_16_BIT,
    80: Tile(128, 32, warps=8, stages=3),
    89: Tile(128, 32, warps=8, stages=2),
    90: Tile(128, 64, warps=8, stages=3),
    120: Tile(128, 32, warps=8, stages=2),
}
"""For keys of 16 bits whose values are INT8 or are summed in fp16."""

TILES_FP32: Tiles = {INTERPRETER: Tile(32, 32, warps=4)} | {
    sm: Tile(32, 16, warps=8, stages=2) for sm in ARCHITECTURES
}
"""For comparing with plain fp32: products in three parts of TF32, which keep 21 bits (tf32x3)."""

DESCRIPTORS = (90, 100)
"""Where TMA is used: fewer registers than with pointers (performance notes: 187 against 255); not measured."""


def config_for(queries: Tensor, kv: KVView, fp16_sums: bool) -> SplitConfig:
    """How these sizes are cut on their device; the same at every fill. Raises ValueError if it has no tile."""
    chip = architecture(queries.device)
    tiles = tiles_for(kv.planes.keys.dtype, kv.planes.values.dtype, queries.dtype, fp16_sums)
    tile = tile_for(tiles, chip, f"window_attention{' with fp16 sums' if fp16_sums else ''}")
    if chip == INTERPRETER:
        return SplitConfig(tile)
    batch, tokens, heads, _ = queries.shape
    processors = torch.cuda.get_device_properties(queries.device).multi_processor_count
    splits = choose_num_splits(batch * heads * -(-tokens // tile.m), -(-kv.max_tokens // tile.n), processors)
    return SplitConfig(tile, splits, uses_descriptors(chip, queries.dtype))


def choose_num_splits(query_tiles: int, key_tiles: int, processors: int) -> int:
    """Into how many splits to cut the keys, so that the last wave of programs is full and merging costs less."""

    def steps(splits: int) -> float:
        waves = -(-query_tiles * splits // processors)
        merging = MERGE_STEPS * splits * query_tiles / processors if splits > 1 else 0.0
        return waves * -(-key_tiles // splits) + merging

    return min(range(1, min(MAX_SPLITS, key_tiles) + 1), key=steps)


def tiles_for(keys: torch.dtype, values: torch.dtype, queries: torch.dtype, fp16_sums: bool) -> Tiles:
    """Those of dtypes; only of chips where sums in fp16 are of use, if they are asked for."""
    tiles = TILES_16_BIT
    if keys == torch.int8:
        tiles = TILES_INT8
    elif queries == torch.float32:
        tiles = TILES_FP32
    elif values == torch.int8 or fp16_sums:
        tiles = TILES_MIXED
    return {chip: tile for chip, tile in tiles.items() if not fp16_sums or chip in (INTERPRETER, *FP16_SUMS)}


def uses_descriptors(chip: int, dtype: torch.dtype) -> bool:
    """Whether keys and values are copied by TMA."""
    return chip in DESCRIPTORS and dtype != torch.float32

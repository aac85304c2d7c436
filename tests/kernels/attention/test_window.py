from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import KVView, KVViewTable
from kernels.attention.window import SplitConfig, choose_num_splits, window_attention, window_attention_reference
from kernels.quantize import quantize_keys, quantize_rows
from kernels.tiles import Tile
from tests.tolerances import assert_within

HEADS, DIM, LAYERS, LAYER = 2, 16, 2, 1
SLOT_TOKENS = 24


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _lent(filled: int, slots: int, sink: int = 0, last_log: float = 0.0, seed: int = 0) -> KVView:
    """A slab whose unfilled tokens are NaN: nobody may read them."""
    keys, values = _random(2, LAYERS, slots * SLOT_TOKENS, HEADS, DIM, seed=seed)
    keys[:, filled:], values[:, filled:] = torch.nan, torch.nan
    shape = (LAYERS, slots, SLOT_TOKENS, HEADS, DIM)
    return KVView(keys.view(shape), values.view(shape), filled, sink, last_log)


def _on(device: torch.device, *lent: KVView) -> KVViewTable:
    moved = [replace(x, keys=x.keys.to(device), values=x.values.to(device)) for x in lent]
    return KVViewTable(moved, device)


def _assert_as_reference(queries: Tensor, table: KVViewTable, sink_queries: Tensor | None = None) -> None:
    for num_splits, descriptors in ((1, False), (3, True)):
        split = SplitConfig(Tile(32, 16, warps=4), num_splits, descriptors)
        got = window_attention(queries, table, LAYER, sink_queries=sink_queries, split=split)
        assert got.dtype == queries.dtype
        expected = window_attention_reference(queries.float(), _in_fp32(table), LAYER, sink_queries=sink_queries)
        assert_within("window_attention", got, expected)


def _in_fp32(table: KVViewTable) -> KVViewTable:
    lent = [replace(x, keys=x.keys.float(), values=x.values.float()) for x in table.lent]
    return KVViewTable(lent, table.filled.device)


@pytest.mark.parametrize("tokens", [1, 33, 64], ids=lambda n: f"{n}queries")
@pytest.mark.parametrize(("filled", "slots"), [(1, 1), (7, 1), (24, 1), (24, 4), (96, 4)], ids=str)
def test_the_filled_front_of_a_slab_is_attended(
    tokens: int, filled: int, slots: int, device: torch.device
) -> None:
    queries = _random(1, tokens, HEADS, DIM).to(device)
    _assert_as_reference(queries, _on(device, _lent(filled, slots)))


@pytest.mark.parametrize("sink", [1, 16, 24, 95, 96])
def test_the_sink_is_scored_by_its_own_queries(sink: int, device: torch.device) -> None:
    queries, sink_queries = _random(2, 1, 40, HEADS, DIM).to(device)
    _assert_as_reference(queries, _on(device, _lent(96, 4, sink)), sink_queries)


def test_streams_of_a_batch_have_fills_sinks_and_slabs_of_their_own(device: torch.device) -> None:
    queries, sink_queries = _random(2, 4, 24, HEADS, DIM).to(device)
    fills = ((24, 4, 0), (48, 2, 24), (96, 4, 24), (3, 1, 3))
    table = _on(device, *(_lent(*fill, seed=i) for i, fill in enumerate(fills)))
    _assert_as_reference(queries, table, sink_queries)


@pytest.mark.parametrize("filled", [41, 48], ids=["in a tile", "at its end"])
def test_the_last_key_counts_as_often_as_it_is_told(filled: int, device: torch.device) -> None:
    queries = _random(1, 20, HEADS, DIM).to(device)
    folded, times = _lent(filled, 2), 200
    keys, values = (x.flatten(1, 2)[:, :filled] for x in (folded.keys, folded.values))
    keys, values = (torch.cat([x, x[:, -1:].expand(-1, times - 1, -1, -1)], dim=1) for x in (keys, values))
    table = _on(device, replace(folded, last_log=math.log(times)))
    _assert_as_reference(queries, table)
    expected = window_attention_reference(queries, _on(device, KVView(keys, values, filled - 1 + times)), LAYER)
    assert_within("window_attention", window_attention(queries, table, LAYER), expected)


@pytest.mark.parametrize("dim", [32, 128])
def test_fp16_is_right_to_its_last_place(dim: int, device: torch.device) -> None:
    keys, values = _random(2, LAYERS, 50, 1, dim).half()
    queries = _random(1, 33, 1, dim).half().to(device)
    _assert_as_reference(queries, _on(device, KVView(keys, values, 50)))


@pytest.mark.parametrize("dim", [12, 48])
def test_channels_of_a_head_need_be_no_power_of_two(dim: int, device: torch.device) -> None:
    keys, values = _random(2, LAYERS, 50, HEADS, dim)
    queries, sink_queries = _random(2, 1, 33, HEADS, dim).to(device)
    _assert_as_reference(queries, _on(device, KVView(keys, values, 50, sink=7)), sink_queries)


def test_int8_heads_may_be_narrower_than_their_instructions(device: torch.device) -> None:
    queries = _random(1, 33, HEADS, 48).to(device)
    keys, values = _random(2, LAYERS, 50, HEADS, 48)
    table = _int8(device, KVView(keys, values, 50))
    split = SplitConfig(Tile(32, 16, warps=4), num_splits=2)
    got = window_attention(queries, table, LAYER, split=split)
    assert_within("window_attention", got, window_attention_reference(queries, table, LAYER))


def test_scores_far_apart_do_not_overflow(device: torch.device) -> None:
    queries = 100 * _random(1, 20, HEADS, DIM).to(device)
    _assert_as_reference(queries, _on(device, _lent(60, 3)))


def test_equal_calls_give_equal_bits(device: torch.device) -> None:
    queries, table = _random(1, 40, HEADS, DIM).to(device), _on(device, _lent(90, 4))
    split = SplitConfig(Tile(16, 16, warps=4), num_splits=4)
    first = window_attention(queries, table, LAYER, split=split)
    assert torch.equal(first, window_attention(queries, table, LAYER, split=split))


def test_lending_another_slab_changes_what_the_same_table_attends(device: torch.device) -> None:
    queries, table = _random(1, 9, HEADS, DIM).to(device), _on(device, _lent(30, 2))
    table.lend(0, _on(device, _lent(90, 4, seed=5)).lent[0])
    _assert_as_reference(queries, table)


def _int8(device: torch.device, *lent: KVView) -> KVViewTable:
    table = _on(device, *lent)
    quantized = [quantize_keys(x.keys.nan_to_num()) for x in table.lent]
    rows = zip(table.lent, quantized, strict=True)
    return KVViewTable([replace(x, keys=keys, key_scales=scales) for x, (keys, scales) in rows], device)


def test_an_int8_key_is_half_a_scale_from_its_key_at_most() -> None:
    keys = 10 * _random(2, 3, 5, HEADS, DIM)
    keys[0, 0, 0] = 0
    rounded, scales = quantize_keys(keys)
    of_keys = scales.movedim(1, -1).unsqueeze(-1)
    assert bool(((rounded * of_keys - keys).abs() <= 0.5001 * of_keys).all())
    assert bool((rounded.abs().amax(-1)[1] == 127).all())


@pytest.mark.parametrize("num_splits", [1, 3])
def test_int8_keys_are_multiplied_as_the_reference_says(num_splits: int, device: torch.device) -> None:
    queries, sink_queries = _random(2, 2, 40, HEADS, DIM).to(device)
    table = _int8(device, _lent(90, 4, 24), _lent(24, 1, 0, last_log=3.0))
    split = SplitConfig(Tile(32, 16, warps=4), num_splits)
    got = window_attention(queries, table, LAYER, sink_queries=sink_queries, split=split)
    expected = window_attention_reference(queries, table, LAYER, sink_queries=sink_queries)
    assert_within("window_attention", got, expected)


def test_int8_is_as_near_to_exact_as_its_rounding(device: torch.device) -> None:
    queries, lent = _random(1, 40, HEADS, DIM).to(device), _lent(96, 4)
    got = window_attention(queries, _int8(device, lent), LAYER)
    exact = window_attention_reference(queries, _on(device, lent), LAYER)
    assert bool(((got - exact).abs() <= _int8_bound(queries, _on(device, lent))).all())
    assert not torch.equal(got, exact)


def _int8_bound(queries: Tensor, table: KVViewTable) -> Tensor:
    """How far INT8 scores can move an output [1, T, H, 1].

    q and k are each off by at most half a scale, so a score by at most e, and a weight by a factor between
    exp(-2e) and exp(2e): the output moves by at most exp(2e) - 1 times the largest distance of a value from it.
    """
    keys, values, _ = table.lent[0].attended(LAYER)
    half_q, half_k = (quantize_rows(x)[1].unsqueeze(-1) / 2 for x in (queries[0], keys))
    q, k = queries[0].abs().transpose(0, 1), keys.abs().transpose(0, 1)
    half_q, half_k = half_q.transpose(0, 1), half_k.transpose(0, 1)
    error = q.sum(-1, keepdim=True) @ half_k.mT + half_q @ k.sum(-1, keepdim=True).mT + DIM * half_q @ half_k.mT
    largest = (error * DIM**-0.5).amax(-1)
    spread = values.abs().amax((0, 2)) * 2
    return ((2 * largest).expm1() * spread[:, None]).T[None, :, :, None]


@pytest.mark.parametrize(
    ("query_tiles", "key_tiles", "num_splits"),
    [(444, 147, 2), (132, 147, 1), (1, 147, 8), (1, 1, 1), (12, 3, 3)],
    ids=["480x832", "one full wave", "few queries", "one key tile", "few of both"],
)
def test_splits_fill_the_last_wave(query_tiles: int, key_tiles: int, num_splits: int) -> None:
    assert choose_num_splits(query_tiles, key_tiles, processors=132) == num_splits


def test_the_operator_is_registered_for_graphs(device: torch.device) -> None:
    queries, table = _random(1, 9, HEADS, DIM).to(device), _on(device, _lent(30, 2))
    arguments = (queries, queries, list(table.columns), LAYER, torch.float32, [32, 16, 4, 1], 2, False)
    torch.library.opcheck(torch.ops.longtake.window_attention.default, arguments)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    queries, table = _random(1, 9, HEADS, DIM).to(device), _on(device, _lent(30, 2))
    with pytest.raises(ValueError, match="no layer 2"):
        window_attention(queries, table, LAYERS)
    with pytest.raises(ValueError, match="do not fit 1 streams"):
        window_attention(queries.expand(2, -1, -1, -1).contiguous(), table, LAYER)
    with pytest.raises(ValueError, match=r"queries in torch\.float16"):
        window_attention(queries.half(), table, LAYER)
    with pytest.raises(ValueError, match="contiguous"):
        window_attention(queries, table, LAYER, sink_queries=queries.transpose(1, 2).contiguous().transpose(1, 2))
    for dim in (10, 160):
        with pytest.raises(ValueError, match=f"heads of {dim} channels in torch.float32; .* at most 128"):
            window_attention(_random(1, 9, HEADS, dim).to(device), table, LAYER)

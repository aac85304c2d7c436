from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import KVPlanes, KVView
from kernels.attention.window import window_attention, window_attention_reference
from kernels.attention.window_tiles import SplitConfig, choose_num_splits, tiles_for
from kernels.quantize import quantize_rows
from kernels.tiles import Tile, tile_for
from tests.kernels.attention.pools import DIM, HEADS, LAYER, LAYERS, Run, int8, pool, random, view
from tests.tolerances import assert_within


def _assert_as_reference(queries: Tensor, kv: KVView) -> None:
    planes = KVPlanes(kv.planes.keys.float(), kv.planes.values.float())
    expected = window_attention_reference(queries.float(), replace(kv, planes=planes), LAYER)
    for num_splits, descriptors in ((1, False), (3, True)):
        config = SplitConfig(Tile(32, 16, warps=4), num_splits, descriptors)
        got = window_attention(queries, kv, LAYER, config=config)
        assert got.dtype == queries.dtype
        assert_within("window_attention", got, expected)


@pytest.mark.parametrize("tokens", [1, 33, 64], ids=lambda n: f"{n}queries")
@pytest.mark.parametrize("run", [Run(0, 1), Run(5, 7), Run(100, 24), Run(160, 96), Run(7, 90, 17)], ids=str)
def test_a_row_attends_its_run_wherever_it_lies(tokens: int, run: Run, device: torch.device) -> None:
    queries = random(1, tokens, HEADS, DIM).to(device)
    _assert_as_reference(queries, view(pool([run]), [run], device))


def test_rows_of_a_batch_have_runs_fills_and_firsts_of_their_own(device: torch.device) -> None:
    runs = [Run(0, 24), Run(30, 48, 24), Run(100, 96, 5), Run(210, 3)]
    _assert_as_reference(random(4, 24, HEADS, DIM).to(device), view(pool(runs), runs, device))


def test_a_row_in_a_batch_has_the_bits_it_has_alone(device: torch.device) -> None:
    runs = [Run(0, 24), Run(30, 48, 24)]
    queries, planes = random(2, 24, HEADS, DIM).to(device), pool(runs)
    together = window_attention(queries, view(planes, runs, device), LAYER)
    alone = window_attention(queries[1:], view(planes, runs[1:], device), LAYER)
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("used", [41, 48], ids=["in a tile", "at its end"])
def test_the_last_key_counts_as_often_as_it_is_told(used: int, device: torch.device) -> None:
    queries, times, run = random(1, 20, HEADS, DIM).to(device), 20, Run(3, used)
    folded = view(pool([run]), [run], device, [math.log(times)])
    _assert_as_reference(queries, folded)
    keys, values, *_ = folded.attended(0, LAYER)
    keys, values = (
        torch.cat([x, x[-1:].expand(times - 1, -1, -1)]).expand(LAYERS, -1, -1, -1) for x in (keys, values)
    )
    whole = view(KVPlanes(keys.contiguous(), values.contiguous()), [Run(0, used - 1 + times)], device)
    expected = window_attention_reference(queries, whole, LAYER)
    assert_within("window_attention", window_attention(queries, folded, LAYER), expected)


@pytest.mark.parametrize("dim", [32, 128])
def test_fp16_is_right_to_its_last_place(dim: int, device: torch.device) -> None:
    runs = [Run(9, 50)]
    queries = random(1, 33, 1, dim).half().to(device)
    _assert_as_reference(queries, view(pool(runs, heads=1, dim=dim, dtype=torch.float16), runs, device))


@pytest.mark.parametrize("dim", [12, 48])
def test_channels_of_a_head_need_be_no_power_of_two(dim: int, device: torch.device) -> None:
    runs = [Run(4, 50)]
    _assert_as_reference(random(1, 33, HEADS, dim).to(device), view(pool(runs, dim=dim), runs, device))


def test_scores_far_apart_do_not_overflow(device: torch.device) -> None:
    runs = [Run(20, 60)]
    queries, kv = 100 * random(1, 20, HEADS, DIM).to(device), view(pool(runs), runs, device)
    config = SplitConfig(Tile(32, 16, warps=4), num_splits=3)
    got = window_attention(queries, kv, LAYER, config=config)
    # A score of some hundreds is off by its last place, and so is its exponential, as a share of itself.
    torch.testing.assert_close(got, window_attention_reference(queries, kv, LAYER), atol=1e-4, rtol=1e-4)


def test_equal_calls_give_equal_bits(device: torch.device) -> None:
    runs = [Run(0, 90)]
    queries, kv = random(1, 40, HEADS, DIM).to(device), view(pool(runs), runs, device)
    config = SplitConfig(Tile(16, 16, warps=4), num_splits=4)
    first = window_attention(queries, kv, LAYER, config=config)
    assert torch.equal(first, window_attention(queries, kv, LAYER, config=config))


def test_other_bounds_in_the_same_place_change_what_is_attended(device: torch.device) -> None:
    runs = [Run(0, 30), Run(100, 90)]
    kv = replace(view(pool(runs), runs[:1], device), max_tokens=90)
    kv.bounds.copy_(torch.tensor(runs[1].bounds).view(2, 1))
    _assert_as_reference(random(1, 9, HEADS, DIM).to(device), kv)


IN_INT8 = pytest.mark.parametrize(
    ("keys", "values"), [(True, False), (False, True), (True, True)], ids=["keys", "values", "keys and values"]
)


@IN_INT8
@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("dim", [DIM, 48], ids=["narrow", "no power of two"])
def test_int8_is_multiplied_as_the_reference_says(
    keys: bool, values: bool, num_splits: int, dim: int, device: torch.device
) -> None:
    runs = [Run(0, 90, 3), Run(95, 24)]
    queries = random(2, 40, HEADS, dim).to(device)
    kv = view(int8(pool(runs, dim=dim), keys=keys, values=values), runs, device, [0.0, 3.0])
    config = SplitConfig(Tile(32, 16, warps=4), num_splits)
    got = window_attention(queries, kv, LAYER, config=config)
    assert_within("window_attention", got, window_attention_reference(queries, kv, LAYER))


@IN_INT8
def test_int8_beside_fp16_queries_is_right_to_its_last_place(
    keys: bool, values: bool, device: torch.device
) -> None:
    runs = [Run(9, 50), Run(60, 77)]
    kv = view(int8(pool(runs, dtype=torch.float16), keys=keys, values=values), runs, device)
    queries = random(2, 33, HEADS, DIM).half().to(device)
    got = window_attention(queries, kv, LAYER)
    plain = {name: x.float() for name, x in vars(kv.planes).items() if x is not None and x.dtype != torch.int8}
    exact = replace(kv, planes=replace(kv.planes, **plain))
    assert_within("window_attention", got, window_attention_reference(queries.float(), exact, LAYER))


@pytest.mark.parametrize("fp16_sums", [False, True])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e7], ids=["tiny", "of one", "huge"])
def test_int8_values_may_be_of_any_size_beside_each_other(
    fp16_sums: bool, size: float, device: torch.device
) -> None:
    """In fp16 a value of 65520 is infinite, and one of 1e-8 zero."""
    runs = [Run(8, 96)]
    planes = pool(runs)
    planes.values.mul_(size * 10 ** (torch.arange(256) % 7 - 3.0)[None, :, None, None])
    kv = view(int8(planes, values=True), runs, device)
    queries = random(1, 40, HEADS, DIM).to(device)
    got = window_attention(queries, kv, LAYER, fp16_sums=fp16_sums)
    expected = window_attention_reference(queries, kv, LAYER)
    error = 2**-8 if fp16_sums else 2**-20
    assert bool(((got - expected).norm(dim=-1) <= error * expected.norm(dim=-1)).all())


@pytest.mark.parametrize("int8_values", [False, True], ids=["values as they are", "INT8 values"])
@pytest.mark.parametrize("int8_keys", [False, True], ids=["keys as they are", "INT8 keys"])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_sums_in_fp16_are_off_by_no_more_than_their_roundings(
    int8_keys: bool, int8_values: bool, num_splits: int, device: torch.device
) -> None:
    runs = [Run(0, 90, 3), Run(95, 24)]
    kv = view(int8(pool(runs), keys=int8_keys, values=int8_values), runs, device)
    queries, config = random(2, 40, HEADS, DIM).to(device), SplitConfig(Tile(32, 16, warps=4), num_splits)
    expected = window_attention_reference(queries, kv, LAYER)
    absolute = replace(kv, planes=replace(kv.planes, values=kv.planes.values.abs()))
    error = (window_attention(queries, kv, LAYER, fp16_sums=True, config=config) - expected).abs()
    # A weight, a value, their product, and 16 sums are each rounded to 11 bits.
    assert bool((error <= 19 * 2**-11 * window_attention_reference(queries, absolute, LAYER)).all())
    assert float(error.max()) > 1e-5


def test_a_row_of_int8_has_the_bits_it_has_alone(device: torch.device) -> None:
    runs = [Run(0, 24), Run(30, 48, 24)]
    queries, planes = random(2, 24, HEADS, DIM).to(device), int8(pool(runs), values=True)
    together = window_attention(queries, view(planes, runs, device), LAYER, fp16_sums=True)
    alone = window_attention(queries[1:], view(planes, runs[1:], device), LAYER, fp16_sums=True)
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("chip", [90, 100])
def test_sums_in_fp16_have_no_tile_where_they_are_of_no_use(chip: int) -> None:
    int8, half = torch.int8, torch.bfloat16
    for keys, values in ((int8, int8), (half, half), (int8, half)):
        assert chip in tiles_for(keys, values, half, False)
        assert sorted(tiles_for(keys, values, half, True)) == [0, 80, 89, 120]
    with pytest.raises(ValueError, match=f"no tile for sm_{chip}; known are sm_80, sm_89, sm_120"):
        tile_for(tiles_for(int8, int8, half, True), chip, "window_attention with fp16 sums")


def test_int8_is_as_near_to_exact_as_its_rounding(device: torch.device) -> None:
    runs = [Run(8, 96)]
    queries, planes = random(1, 40, HEADS, DIM).to(device), pool(runs)
    exact = view(planes, runs, device)
    got = window_attention(queries, view(int8(planes), runs, device), LAYER)
    error = (got - window_attention_reference(queries, exact, LAYER)).abs()
    assert bool((error <= _int8_bound(queries, exact)).all())
    assert bool(error.any())


def _int8_bound(queries: Tensor, kv: KVView) -> Tensor:
    """How far INT8 scores can move an output [1, T, H, 1].

    q and k are each off by at most half a scale, so a score by at most e, and a weight by a factor between
    exp(-2e) and exp(2e): the output moves by at most exp(2e) - 1 times the largest distance of a value from it.
    """
    keys, values, *_ = kv.attended(0, LAYER)
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
    runs = [Run(0, 30)]
    kv = view(pool(runs), runs, device)
    planes = kv.planes.keys.nan_to_num(), kv.planes.values.nan_to_num()
    arguments = (
        random(1, 9, HEADS, DIM).to(device),
        *planes,
        None,
        None,
        kv.bounds,
        None,
        LAYER,
        [32, 16, 4, 1],
        2,
        False,
        False,
    )
    torch.library.opcheck(torch.ops.longtake.window_attention.default, arguments)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    runs = [Run(0, 30)]
    queries, kv = random(1, 9, HEADS, DIM).to(device), view(pool(runs), runs, device)
    with pytest.raises(ValueError, match="no layer 2"):
        window_attention(queries, kv, LAYERS)
    with pytest.raises(ValueError, match="do not fit 1 rows"):
        window_attention(queries.expand(2, -1, -1, -1).contiguous(), kv, LAYER)
    with pytest.raises(ValueError, match=r"queries in torch\.float16"):
        window_attention(queries.half(), kv, LAYER)
    with pytest.raises(ValueError, match="contiguous"):
        window_attention(queries.transpose(1, 2).contiguous().transpose(1, 2), kv, LAYER)
    for dim in (10, 160):
        with pytest.raises(ValueError, match=f"heads of {dim} channels in torch.float32; .* at most 128"):
            window_attention(random(1, 9, HEADS, dim).to(device), view(pool(runs, dim=dim), runs, device), LAYER)

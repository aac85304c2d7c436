from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.attention.kv_view import KVPlanes, KVView, layer_slots
from tests.kernels.attention.pools import LAYERS, Run, int8, pool, view

CPU = torch.device("cpu")
RUNS = [Run(3, 20, 4), Run(60, 7)]


def test_a_row_attends_the_tokens_within_its_bounds() -> None:
    kv = view(int8(pool(RUNS)), RUNS, CPU)
    for row, run in enumerate(RUNS):
        keys, values, scales = kv.attended(row, layer=1)
        here = slice(run.start + run.first, run.start + run.used)
        assert torch.equal(keys, kv.planes.keys[1, here])
        assert torch.equal(values, kv.planes.values[1, here])
        assert scales is not None
        assert kv.planes.key_scales is not None
        assert torch.equal(scales, kv.planes.key_scales[1, :, here])


def test_slots_are_those_of_all_layers_or_of_each() -> None:
    mapping = torch.tensor([[[0, 1]], [[2, 3]]], dtype=torch.int32)
    assert layer_slots(mapping, 1).tolist() == [[2, 3]]
    assert layer_slots(mapping[0], 1).tolist() == [[0, 1]]


def test_planes_with_gaps_are_refused() -> None:
    planes = pool(RUNS)
    with pytest.raises(ValueError, match="contiguous"):
        KVPlanes(planes.keys[:, ::2], planes.values[:, ::2])
    with pytest.raises(ValueError, match="are not both"):
        KVPlanes(planes.keys, planes.values[..., :-1])


def test_int8_keys_need_scales_of_their_shape() -> None:
    planes = int8(pool(RUNS))
    assert planes.key_scales is not None
    with pytest.raises(ValueError, match="INT8 keys, and no others, have scales"):
        replace(planes, key_scales=None)
    with pytest.raises(ValueError, match="do not fit keys"):
        replace(planes, key_scales=planes.key_scales.mT.contiguous())
    with pytest.raises(ValueError, match=r"in torch\.float16 on cpu do not fit keys"):
        replace(planes, key_scales=planes.key_scales.half())


def test_bounds_and_multiplicities_of_another_kind_are_refused() -> None:
    kv = view(pool(RUNS), RUNS, CPU)
    with pytest.raises(ValueError, match=r"bounds must be contiguous int32 \[2, 2\]"):
        replace(kv, bounds=kv.bounds.long())
    with pytest.raises(ValueError, match=r"last_log must be fp32 \[2\]"):
        replace(kv, last_log=torch.zeros(3))
    with pytest.raises(ValueError, match="max_tokens is 0"):
        KVView(kv.planes, kv.bounds, max_tokens=0)
    with pytest.raises(ValueError, match=f"no layer {LAYERS}"):
        kv.planes.require_layer("an op", LAYERS)

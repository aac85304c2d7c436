from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.attention.kv_view import KVPlanes, KVView, layer_slots
from tests.kernels.attention.pools import LAYERS, Run, int8, pool, view

CPU = torch.device("cpu")
RUNS = [Run(3, 20, 4), Run(60, 7)]


def test_a_row_attends_the_tokens_within_its_bounds() -> None:
    kv = view(int8(pool(RUNS), values=True), RUNS, CPU)
    for row, run in enumerate(RUNS):
        attended = kv.attended(row, layer=1)
        here = slice(run.start + run.first, run.start + run.used)
        assert torch.equal(attended.keys, kv.planes.keys[1, here])
        assert torch.equal(attended.values, kv.planes.values[1, here])
        pairs = (
            (attended.key_scales, kv.planes.key_scales),
            (attended.value_scales, kv.planes.value_scales),
        )
        for scales, plane in pairs:
            assert scales is not None
            assert plane is not None
            assert torch.equal(scales, plane[1, :, here])


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


@pytest.mark.parametrize("what", ["keys", "values"])
def test_int8_needs_scales_of_its_shape(what: str) -> None:
    planes, name = int8(pool(RUNS), values=True), f"{what.removesuffix('s')}_scales"
    scales, plain = vars(planes)[name], vars(planes)[what].float()
    with pytest.raises(ValueError, match=f"INT8 {what}, and no others, have scales"):
        KVPlanes(**vars(planes) | {name: None})
    with pytest.raises(ValueError, match=f"do not fit {what}"):
        replace(planes, **{name: scales.mT.contiguous()})
    with pytest.raises(ValueError, match=rf"in torch\.float16 on cpu do not fit {what}"):
        replace(planes, **{name: scales.half()})
    with pytest.raises(ValueError, match=f"INT8 {what}, and no others, have scales"):
        replace(planes, **{what: plain})


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

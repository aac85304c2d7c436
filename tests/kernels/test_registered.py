"""What a compiled or captured graph knows of the kernels of rows: the shapes they return and what they write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._library.custom_ops import CustomOpDef

from kernels.attention import qk_norm_rope as fused
from kernels.attention.kv_view import KVView, KVViewTable
from kernels.attention.rope import Turns
from kernels.flow_step import flow_step
from kernels.gated_residual import gated_residual
from kernels.layernorm_modulate import layernorm_modulate, layernorm_modulate_int8
from kernels.linear import linear, linear_gelu, linear_residual
from kernels.rms_norm import rms_norm

ROWS, GATE, LATENTS, LEVEL = (2, 3, 5, 32), (2, 3, 1, 32), (2, 1, 2, 3, 4), (2,)


@pytest.mark.parametrize(
    ("op", "shapes", "rest"),
    [
        (layernorm_modulate, (ROWS, GATE, GATE), (1e-6,)),
        (layernorm_modulate_int8, (ROWS, GATE, GATE), (1e-6,)),
        (gated_residual, (ROWS, ROWS, GATE), ()),
        (rms_norm, ((2, 5, 32), (32,)), (1e-6,)),
        (flow_step, (LATENTS, LATENTS, LATENTS, LEVEL, LEVEL), ()),
        (linear, ((2, 5, 16), (32, 16), (32,)), ()),
        (linear_gelu, ((2, 5, 16), (32, 16), (32,)), ()),
        (linear_residual, ((2, 15, 16), (32, 16), (32,), ROWS, GATE), ()),
    ],
    ids=[
        "layernorm_modulate",
        "layernorm_modulate_int8",
        "gated_residual",
        "rms_norm",
        "flow_step",
        "linear",
        "linear_gelu",
        "linear_residual",
    ],
)
def test_an_op_is_what_it_is_registered_as(
    op: CustomOpDef, shapes: tuple[tuple[int, ...], ...], rest: tuple[Any, ...], device: torch.device
) -> None:
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device) for shape in shapes]
    torch.library.opcheck(op, (*tensors, *rest), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("sink", [False, True], ids=["one rotation", "two rotations"])
def test_the_write_into_slabs_is_registered_as_one(sink: bool, device: torch.device) -> None:
    q, k, v = torch.randn(3, 1, 6, 32, device=device)
    turns = torch.ones(3, 1, 6, 8, dtype=torch.complex64, device=device)
    slab = torch.zeros(2, 1, 4, 3, 2, 16, device=device)
    table = KVViewTable([KVView(slab[0], slab[1], filled=12)], device)
    slot_mapping = torch.zeros(1, 2, dtype=torch.int32, device=device)
    weight = torch.ones(32, device=device)
    kept = (table.keys, table.values, table.key_scales, table.layer_strides, table.scale_strides, slot_mapping)
    given = Turns(turns[0], turns[1], turns[2] if sink else None)
    arguments = (q, k, v, weight, weight, given.queries, given.keys, given.sink_queries, *kept, 0, 1e-6, False)
    torch.library.opcheck(fused._qk_norm_rope, arguments, test_utils=("test_schema", "test_faketensor"))
    assert {"keys", "values", "key_scales"} == {
        argument.name
        for argument in torch.ops.longtake.qk_norm_rope.default._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }

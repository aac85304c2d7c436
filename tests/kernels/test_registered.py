"""What a compiled or captured graph knows of the kernels of rows: the shapes they return and what they write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

import kernels.attention.qk_norm_rope  # noqa: F401  Registers it.
from kernels.flow_step import flow_step
from kernels.layernorm_modulate import (
    add_layernorm,
    add_layernorm_int8,
    add_layernorm_modulate,
    add_layernorm_modulate_int8,
    layernorm_modulate,
    layernorm_modulate_int8,
)
from kernels.linear import linear, linear_gelu
from kernels.linear_int8 import linear_int8, linear_int8_gelu
from kernels.quantize import quantize_rows, quantize_rows_triton
from kernels.rms_norm import rms_norm

ROWS, GATE, LATENTS, LEVEL = (2, 3, 5, 32), (2, 3, 1, 32), (2, 1, 2, 3, 4), (2,)
INT8_SHAPES = (2, 5, 16), (32, 16), (32,)


@pytest.mark.parametrize(
    ("op", "shapes", "rest"),
    [
        (layernorm_modulate, (ROWS, GATE, GATE), (1e-6,)),
        (layernorm_modulate_int8, (ROWS, GATE, GATE), (1e-6,)),
        (add_layernorm_modulate, (ROWS, ROWS, GATE, GATE, GATE), (1e-6,)),
        (add_layernorm, (ROWS, ROWS, GATE, (32,), (32,)), (1e-6,)),
        (add_layernorm_modulate_int8, (ROWS, ROWS, GATE, GATE, GATE), (1e-6,)),
        (add_layernorm_int8, (ROWS, ROWS, GATE, (32,), (32,)), (1e-6,)),
        (rms_norm, ((2, 5, 32), (32,)), (1e-6,)),
        (flow_step, (LATENTS, LATENTS, LATENTS, LEVEL, LEVEL), ()),
        (quantize_rows_triton, ((2, 5, 32),), ()),
        (linear, ((2, 5, 16), (32, 16), (32,)), ()),
        (linear_gelu, ((2, 5, 16), (32, 16), (32,)), ()),
    ],
    ids=[
        "layernorm_modulate",
        "layernorm_modulate_int8",
        "add_layernorm_modulate",
        "add_layernorm",
        "add_layernorm_modulate_int8",
        "add_layernorm_int8",
        "rms_norm",
        "flow_step",
        "quantize_rows",
        "linear",
        "linear_gelu",
    ],
)
def test_an_op_is_what_it_is_registered_as(
    op: CustomOpDef, shapes: tuple[tuple[int, ...], ...], rest: tuple[Any, ...], device: torch.device
) -> None:
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device) for shape in shapes]
    torch.library.opcheck(op, (*tensors, *rest), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("op", "rest"), [(linear_int8, 0), (linear_int8_gelu, 1)], ids=["linear_int8", "gelu"])
def test_an_op_of_int8_is_what_it_is_registered_as(op: CustomOpDef, rest: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, vector = (
        torch.randn(shape, generator=generator).to(device) for shape in ((2, 5, 16), (32, 16), 32)
    )
    given: tuple[Tensor, ...] = (*quantize_rows(x), *quantize_rows(weight), vector, *[vector] * rest)
    torch.library.opcheck(op, given, test_utils=("test_schema", "test_faketensor"))


def test_the_write_into_the_pool_is_registered_as_one() -> None:
    written = {
        argument.name
        for argument in torch.ops.longtake.qk_norm_rope.default._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    assert written == {"keys", "values", "key_scales", "value_scales", "raw"}

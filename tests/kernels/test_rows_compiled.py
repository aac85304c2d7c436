"""Kernels of rows and linear layers as a chip's machine code, one of each chip's; the table's program does all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from benchmarks.kernel_cases.compiler import Compiled
from benchmarks.kernel_table import all_cases
from kernels import flow_step, layernorm_modulate, linear, linear_int8, quantize, rms_norm
from kernels.attention import qk_norm_rope
from kernels.tiles import ARCHITECTURES, AotCase
from tests.kernels.compiled import compiled

OPS: tuple[Callable[[], Sequence[AotCase]], ...] = tuple(
    op.aot_cases for op in (flow_step, layernorm_modulate, linear, linear_int8, qk_norm_rope, quantize, rms_norm)
)

IN_THE_SUITE = (
    "linear_gelu_sm80", "layernorm_modulate_int8_sm89", "linear_gelu_sm90",
    "add_layernorm_modulate_int8_gated_sm100", "qk_norm_rope_int8_sm120", "linear_int8_sm80", "linear_int8_sm89",
    "linear_int8_gelu_factor_sm90", "linear_int8_gelu_factor_sm120", "quantize_rows_8960_bf16_sm89",
)  # fmt: skip
"""Of the largest forms, one for each chip, and INT8 for each that is made for it."""


@pytest.fixture(scope="module")
def kernels() -> dict[str, Compiled]:
    return compiled(IN_THE_SUITE)


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_a_kernel_fits_its_chip(name: str, kernels: dict[str, Compiled]) -> None:
    (case,) = (case for case in all_cases() if case.name == name)
    assert kernels[name].faults(case) == []


def test_products_are_summed_by_tensor_cores(kernels: dict[str, Compiled]) -> None:
    assert kernels["linear_gelu_sm90"].opcodes["HGMMA"] > 0
    assert kernels["linear_gelu_sm80"].opcodes["HMMA"] > 0


def test_int8_is_summed_by_the_tensor_cores_for_int8(kernels: dict[str, Compiled]) -> None:
    assert kernels["linear_int8_gelu_factor_sm90"].opcodes["IGMMA"] > 0
    for name in ("linear_int8_sm80", "linear_int8_sm89", "linear_int8_gelu_factor_sm120"):
        assert kernels[name].opcodes["IMMA"] > 0


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_every_op_is_in_the_table_for_every_chip(sm: int) -> None:
    listed = {case.name for case in all_cases()}
    for op in OPS:
        names = [case.name for case in op() if case.architecture == sm]
        assert names or (op, sm) == (linear_int8.aot_cases, 100)
        assert listed.issuperset(names)

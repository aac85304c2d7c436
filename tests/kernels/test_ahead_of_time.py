from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.kernel_cases.compiler import Compiled, compile_case
from benchmarks.kernel_table import all_cases, choose
from kernels.attention import window
from kernels.tiles import (
    ARCHITECTURES,
    FP16_SUMS,
    INTERPRETER,
    SHARED_BYTES,
    AotCase,
    Tile,
    architecture,
    tile_for,
)
from tests.kernels.compiled import compiled

CASES = {case.name: case for case in window.aot_cases()}

IN_THE_SUITE = [f"window_attention_{kind}_splits_sm{sm}" for sm in ARCHITECTURES for kind in ("bf16", "int8_bf16")]
IN_THE_SUITE += [f"window_attention_int8_kv_bf16_sm{sm}" for sm in ARCHITECTURES if sm not in FP16_SUMS]
IN_THE_SUITE += [f"window_attention_fp16_sums_int8_kv_bf16_sm{sm}" for sm in FP16_SUMS]
"""A configuration for each chip and 16 or 8 bits; the table's program compiles all of every op."""


@pytest.fixture(scope="module")
def attentions() -> dict[str, Compiled]:
    return compiled(IN_THE_SUITE)


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_attention_fits_its_chip_and_uses_its_tensor_cores(name: str, attentions: dict[str, Compiled]) -> None:
    assert attentions[name].faults(CASES[name]) == []
    assert 64 < attentions[name].registers <= 255


@pytest.mark.parametrize("sm", FP16_SUMS)
def test_values_are_summed_in_fp16_where_they_are_said_to_be(sm: int, attentions: dict[str, Compiled]) -> None:
    opcodes = attentions[f"window_attention_fp16_sums_int8_kv_bf16_sm{sm}"].opcodes
    assert opcodes["HMMA.F16"] == opcodes["HMMA"] > 0
    assert opcodes["IMMA"] > 0
    assert "HMMA.F16" not in attentions[f"window_attention_int8_bf16_splits_sm{sm}"].opcodes


def test_attention_copies_past_the_registers(attentions: dict[str, Compiled]) -> None:
    for name, attention in attentions.items():
        copies = "UTMALDG" if attention.architecture in (90, 100) else "LDGSTS"
        assert attention.opcodes[copies] > 0, name


def _case() -> AotCase:
    return CASES["window_attention_bf16_sm89"]


def _compiled(**changes: object) -> Compiled:
    good = Compiled(_case().name, 89, 200, 0, 0, SHARED_BYTES[89], 8, {"HMMA": 128})
    return replace(good, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spills": 3}, "3 spills"),
        ({"local_bytes": 8}, "8 bytes of stack"),
        ({"shared_bytes": SHARED_BYTES[89] + 1}, "bytes of shared memory where sm_89 has 101376"),
        ({"opcodes": {"IMMA": 4}}, "no HMMA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_that_cannot_be_used_is_told(changes: dict[str, object], fault: str) -> None:
    assert _compiled().faults(_case()) == []
    (found,) = _compiled(**changes).faults(_case())
    assert fault in found


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_every_case_has_the_parameters_of_its_kernel(case: AotCase) -> None:
    assert sorted([*case.arguments, *case.constants]) == sorted(case.kernel.arg_names)


@pytest.mark.parametrize("sm", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32", "int8_bf16", "int8_fp16"])
def test_attention_is_listed_for_every_chip_and_dtype(sm: int, kind: str) -> None:
    for splits in ("", "_splits"):
        assert CASES[f"window_attention_{kind}{splits}_sm{sm}"].architecture == sm


def test_a_sum_in_fp32_does_not_pass_for_one_in_fp16() -> None:
    case = CASES["window_attention_fp16_sums_int8_kv_bf16_sm89"]
    (fault,) = replace(_compiled(), name=case.name, opcodes={"IMMA": 32, "HMMA": 64}).faults(case)
    assert "no HMMA.F16" in fault


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_int8_values_are_listed_for_every_chip_and_sums_in_fp16_where_they_are_of_use(sm: int) -> None:
    for kind in ("int8_kv_bf16", "int8_kv_fp16", "int8_v_bf16"):
        assert f"window_attention_{kind}_splits_sm{sm}" in CASES
        assert (f"window_attention_fp16_sums_{kind}_sm{sm}" in CASES) == (sm in FP16_SUMS)


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no case is called \['nonsense'\]; there are \["):
        choose(all_cases(), ["nonsense"])


def test_an_interpreted_kernel_is_not_compiled() -> None:
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        compile_case(_case())


def test_a_case_must_be_for_a_known_chip_and_name_its_own_arguments() -> None:
    with pytest.raises(ValueError, match="no sm_70"):
        replace(_case(), architecture=70)
    with pytest.raises(ValueError, match=r"\['p_x'\], which are no arguments"):
        replace(_case(), aligned=("p_x",))


def test_a_chip_without_a_tile_is_refused_with_those_known() -> None:
    tiles = {INTERPRETER: Tile(16, 16, 4), 80: Tile(128, 64, 8), 90: Tile(128, 128, 8)}
    assert tile_for(tiles, 90, "attention").n == 128
    with pytest.raises(ValueError, match="attention has no tile for sm_100; known are sm_80, sm_90"):
        tile_for(tiles, 100, "attention")


def test_a_tile_is_of_powers_of_two() -> None:
    with pytest.raises(ValueError, match="a tile's n is a power of two; got 48"):
        Tile(128, 48, 8)
    with pytest.raises(ValueError, match="at least one stage; got 0"):
        Tile(128, 64, 8, stages=0)


def test_interpreted_kernels_take_cpu_tensors_only() -> None:
    assert architecture(torch.device("cpu")) == INTERPRETER
    with pytest.raises(ValueError, match="got tensors on cuda:0"):
        architecture(torch.device("cuda", 0))


def test_kernels_take_tensors_on_the_current_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert architecture(torch.device("cuda", 0)) == 89
    with pytest.raises(ValueError, match="current device, cuda:0; got tensors on cuda:1"):
        architecture(torch.device("cuda", 1))

"""Which implementation each operation gets."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from kernels.dispatch import CHOICES, EAGER, KernelBackends, backends_for, parse_backends

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16


def chip(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Ask for a backends as on a GPU of this kind; nothing is launched."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_a_cpu_runs_plain_pytorch() -> None:
    assert backends_for(CPU, torch.float32) == EAGER


@pytest.mark.parametrize(
    ("capability", "attention"),
    [
        ((8, 0), "triton"),
        ((8, 6), "triton"),
        ((8, 9), "triton"),
        ((9, 0), "library"),
        ((10, 0), "library"),
        ((12, 0), "triton"),
    ],
    ids=str,
)
def test_the_chip_decides_whose_attention_is_faster(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], attention: str
) -> None:
    chip(monkeypatch, capability)
    backends = backends_for(CUDA, BF16)
    assert backends.attention == attention
    assert backends.batched_attention == backends.prompt_attention == backends.qk_norm_rope == "triton"


@pytest.mark.parametrize("capability", [(7, 5), (11, 0)], ids=str)
def test_a_chip_without_tiles_runs_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    chip(monkeypatch, capability)
    assert backends_for(CUDA, BF16) == EAGER


@pytest.mark.parametrize("choice", ["reference", "library", "triton"])
def test_a_setting_forces_every_op_that_knows_it(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    chip(monkeypatch, (9, 0))
    backends = backends_for(CUDA, BF16, parse_backends(choice))
    assert all(getattr(backends, op) == choice for op, choices in CHOICES.items() if choice in choices)


def test_a_forced_reference_is_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (9, 0))
    assert backends_for(CUDA, BF16, parse_backends("reference")) == EAGER


def test_a_later_word_of_a_setting_counts() -> None:
    triton = {op: "triton" for op, choices in CHOICES.items() if "triton" in choices}
    assert parse_backends("triton, linear=library") == triton | {"linear": "library"}
    assert parse_backends("auto") == {}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast", "unknown choice 'fast'; known: auto, reference"),
        ("atention=triton", "unknown op 'atention'; known: attention"),
        ("linear=reference", "unknown choice for linear 'reference'; known: library, triton"),
        ("", "unknown choice ''"),
    ],
)
def test_an_unknown_setting_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_backends(text)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("triton", "need a CUDA device or TRITON_INTERPRET=1; the device is cpu"),
        ("flash-attn", "needs a CUDA device"),
    ],
)
def test_what_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str, complaint: str) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=complaint):
        backends_for(CPU, torch.float32, parse_backends(asked))


def test_fp32_is_attended_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (9, 0))
    assert backends_for(CUDA, torch.float32).attention == "triton"
    with pytest.raises(ValueError, match=r"no library attends in torch\.float32; ask for attention=triton"):
        backends_for(CUDA, torch.float32, {"attention": "library"})


CHIPS = pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)


@CHIPS
@pytest.mark.parametrize("asked", ["keys=int8", "values=int8", "keys=int8,values=int8"])
def test_int8_windows_are_attended_by_triton_on_every_chip(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], asked: str
) -> None:
    chip(monkeypatch, capability)
    backends = backends_for(CUDA, BF16, parse_backends(asked))
    assert backends.attention == backends.batched_attention == "triton"
    assert (backends.keys == "int8", backends.values == "int8") == ("keys" in asked, "values" in asked)


@pytest.mark.parametrize("rows", ["keys", "values"])
@pytest.mark.parametrize("asked", [",attention=library", ",attention=triton,batched_attention=library"])
def test_int8_is_refused_a_library(monkeypatch: pytest.MonkeyPatch, rows: str, asked: str) -> None:
    chip(monkeypatch, (9, 0))
    with pytest.raises(ValueError, match=f"no library attends INT8 {rows}; ask for attention=triton"):
        backends_for(CUDA, BF16, parse_backends(f"{rows}=int8{asked}"))


def test_what_changes_results_is_chosen_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (8, 9))
    fused = backends_for(CUDA, BF16, parse_backends("triton"))
    assert (fused.keys, fused.values, fused.value_sums) == ("plain", "plain", "fp32")
    asked = {"keys": "int8", "values": "int8", "value_sums": "fp16"}
    assert backends_for(CUDA, BF16, parse_backends("keys=int8,values=int8,value_sums=fp16")) == replace(
        backends_for(CUDA, BF16), **asked
    )


@CHIPS
def test_sums_in_fp16_are_refused_where_they_save_nothing(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    chip(monkeypatch, capability)
    asked = parse_backends("value_sums=fp16")
    if capability in ((9, 0), (10, 0)):
        with pytest.raises(ValueError, match=r"sm_(90|100) sums in fp32 as fast as in fp16; leave out value_sums"):
            backends_for(CUDA, BF16, asked)
    else:
        assert backends_for(CUDA, BF16, asked).value_sums == "fp16"


@pytest.mark.parametrize("attention", ["library", "reference"])
def test_only_triton_sums_in_fp16(monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    chip(monkeypatch, (8, 9))
    for op in ("attention", "batched_attention"):
        with pytest.raises(ValueError, match="only Triton's attention sums values in fp16; ask for attention=tri"):
            backends_for(CUDA, BF16, parse_backends(f"value_sums=fp16,{op}={attention}"))


def test_a_package_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (9, 0))
    with pytest.raises(ValueError, match="flash_attn is not installed"):
        backends_for(CUDA, BF16, {"attention": "flash-attn"})


def test_backends_without_a_kernel_need_triton_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends_for(CPU, torch.float32) == EAGER
    with pytest.raises(ValueError, match="Triton is not installed"):
        backends_for(CPU, torch.float32, {"attention": "library"})


def test_backends_say_what_they_run() -> None:
    backends = KernelBackends(attention="library", prompt_attention="triton")
    assert str(backends) == (
        "library: attention, linear; "
        "reference: batched_attention, qk_norm_rope, layernorm_modulate, flow_step, decoder; "
        "triton: prompt_attention; plain: keys, values; fp32: value_sums"
    )


def test_an_op_cannot_be_what_it_has_no_code_for() -> None:
    with pytest.raises(ValueError, match="layernorm_modulate cannot be 'library'; it can be reference, triton"):
        KernelBackends(layernorm_modulate="library")

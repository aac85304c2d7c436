"""Which implementation each operation gets."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kernels.dispatch import CHOICES, PLAIN, KernelPlan, plan_for, read_choices

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16


def chip(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Ask for a plan as on a GPU of this kind; nothing is launched."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_a_cpu_runs_plain_pytorch() -> None:
    assert plan_for(CPU, torch.float32) == PLAIN


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
    plan = plan_for(CUDA, BF16)
    assert plan.attention == attention
    assert plan.batched_attention == plan.prompt_attention == plan.norm_rope == "triton"


@pytest.mark.parametrize("capability", [(7, 5), (11, 0)], ids=str)
def test_a_chip_without_tiles_runs_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    chip(monkeypatch, capability)
    assert plan_for(CUDA, BF16) == PLAIN


@pytest.mark.parametrize("choice", ["reference", "library", "triton"])
def test_a_setting_forces_every_op_that_knows_it(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    chip(monkeypatch, (9, 0))
    plan = plan_for(CUDA, BF16, read_choices(choice))
    assert all(getattr(plan, op) == choice for op, choices in CHOICES.items() if choice in choices)


def test_a_forced_reference_is_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (9, 0))
    assert plan_for(CUDA, BF16, read_choices("reference")) == PLAIN


def test_a_later_word_of_a_setting_counts() -> None:
    triton = {op: "triton" for op, choices in CHOICES.items() if "triton" in choices}
    assert read_choices("triton, linear=library") == triton | {"linear": "library"}
    assert read_choices("auto") == {}


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
        read_choices(text)


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
        plan_for(CPU, torch.float32, read_choices(asked))


def test_fp32_is_attended_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (9, 0))
    assert plan_for(CUDA, torch.float32).attention == "triton"
    with pytest.raises(ValueError, match=r"no library attends in torch\.float32; ask for attention=triton"):
        plan_for(CUDA, torch.float32, {"attention": "library"})


@pytest.mark.parametrize("asked", ["keys=int8", "keys=int8,attention=triton,batched_attention=library"])
def test_int8_keys_are_refused_a_library(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    chip(monkeypatch, (9, 0))
    with pytest.raises(ValueError, match="no library scores INT8 keys; ask for attention=triton"):
        plan_for(CUDA, BF16, read_choices(asked))


def test_int8_keys_are_kept_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (8, 9))
    assert plan_for(CUDA, BF16, read_choices("triton")).keys == "plain"
    assert plan_for(CUDA, BF16, read_choices("keys=int8")).keys == "int8"


def test_a_package_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chip(monkeypatch, (9, 0))
    with pytest.raises(ValueError, match="flash_attn is not installed"):
        plan_for(CUDA, BF16, {"attention": "flash-attn"})


def test_a_plan_without_a_kernel_needs_triton_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plan_for(CPU, torch.float32) == PLAIN
    with pytest.raises(ValueError, match="Triton is not installed"):
        plan_for(CPU, torch.float32, {"attention": "library"})


def test_a_plan_says_what_it_runs() -> None:
    plan = KernelPlan(attention="library", prompt_attention="triton")
    assert str(plan) == (
        "library: attention, linear; "
        "reference: batched_attention, merge, norm_rope, modulate, residual, flow_step, decoder; "
        "triton: prompt_attention; plain: keys"
    )


def test_an_op_cannot_be_what_it_has_no_code_for() -> None:
    with pytest.raises(ValueError, match="modulate cannot be 'library'; it can be reference, triton"):
        KernelPlan(modulate="library")

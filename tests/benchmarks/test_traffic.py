from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.measure.counts import Counts
from benchmarks.traffic import CHIPS, Operator, TrafficCounter, count, decoder_operators
from engines.config.model import ModelConfig
from engines.config.presets import preset
from kernels.vae.causal_pad import causal_pad
from kernels.vae.frame_layout import channels_last

TINY, TINY_TAEHV = preset("tiny"), preset("tiny-taehv")
both = pytest.mark.parametrize("model", [TINY, TINY_TAEHV], ids=lambda model: model.name)

PIXELS = 5 * 7 * 96 * 2
"""Bytes of a bf16 frame of the pictures below."""


def names(operators: list[Operator]) -> set[str]:
    return {operator.name for operator in operators}


def test_joining_reads_the_past_and_the_piece_and_writes_both_and_the_new_past() -> None:
    piece = channels_last(torch.empty(1, 96, 12, 5, 7, device="meta", dtype=torch.bfloat16))
    past, kept = (channels_last(piece[:, :, :2].clone()) for _ in range(2))
    with TrafficCounter() as counter:
        causal_pad(piece, past, kept, None, None)
    assert [(o.name, o.work.nbytes) for o in counter.operators] == [
        ("longtake::causal_pad", ((12 + 2) + (12 + 2 * 2)) * PIXELS)
    ]


def test_an_operator_in_place_reads_and_writes_and_a_view_does_neither() -> None:
    x = torch.empty(1, 96, 1, 5, 7, device="meta", dtype=torch.bfloat16)
    with TrafficCounter() as counter:
        x.transpose(1, 2).relu_()
    assert [(o.name, o.work.nbytes) for o in counter.operators] == [("aten::relu_", 2 * PIXELS)]


@both
def test_fused_pictures_are_copied_where_one_has_become_two_frames_and_nowhere_else(model: ModelConfig) -> None:
    copies = {"aten::clone", "aten::cat", "aten::copy_"}
    fused = [operator.name for operator in decoder_operators(model, fused=True) if operator.name in copies]
    assert fused == 2 * ["aten::clone"]
    assert names(decoder_operators(model, fused=False)) & copies == {"aten::clone", "aten::cat"}


@both
def test_both_paths_compute_what_torch_counts(model: ModelConfig) -> None:
    wanted = Counts(model, model.stream, torch.bfloat16).decode_block().flops
    assert [count(model, fused=fused).flops for fused in (False, True)] == [wanted, wanted]


def test_fusion_leaves_a_third_of_the_bytes_between_the_wan_vaes_convolutions() -> None:
    longlive = preset("longlive-1.3b")
    small = replace(longlive, stream=replace(longlive.stream, height=320, width=576))
    plain, fused = (count(small, fused=fused) for fused in (False, True))
    assert fused.conv_bytes == pytest.approx(plain.conv_bytes, rel=1e-3)
    assert fused.other_bytes < plain.other_bytes / 3
    assert all(fused.floor_ms[chip] < plain.floor_ms[chip] for chip in CHIPS)

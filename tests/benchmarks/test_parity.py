"""Kernels against plain fp32 and bf16, on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.parity import measure
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from kernels.dispatch import EAGER, backends_for, parse_backends

CPU = torch.device("cpu")
TINY = replace(
    preset("tiny"),
    transformer=replace(preset("tiny").transformer, layers=2),
    stream=StreamConfig(height=16, width=32, window_frames=6, steps=(1000,)),
)


def test_kernels_in_fp32_are_much_closer_than_plain_bf16() -> None:
    backends = backends_for(CPU, torch.float32, parse_backends("triton,linear=library"))
    result = measure(TINY, CPU, torch.float32, backends, blocks=3, switch=1, graphs=False)
    assert result.kept
    assert max(result.ours) < 1e-5 < 1e-3 < min(result.plain)


def test_the_ratio_is_to_what_pytorch_itself_loses() -> None:
    result = measure(TINY, CPU, torch.bfloat16, EAGER, blocks=2, switch=1, graphs=False)
    assert result.ratio == 1.0
    assert not replace(result, ours=(result.plain[0], 3 * result.plain[1])).kept
    assert not replace(result, ours=(float("nan"), 0.0)).kept

"""What is refused of a transformer before it is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.errors import ConfigError
from engines.runner.selection import format_problem, require_runnable
from kernels.dispatch import EAGER

INT8, FP8 = QuantizationConfig("int8", 0.5), QuantizationConfig("fp8")
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("recipe", "capabilities"),
    [
        (INT8, [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1)]),
        (FP8, [(8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]),
    ],
    ids=str,
)
def test_most_chips_multiply_8_bits(recipe: QuantizationConfig, capabilities: list[tuple[int, int]]) -> None:
    assert [format_problem(recipe, capability, BF16) for capability in capabilities] == [None] * len(capabilities)


@pytest.mark.parametrize(
    ("recipe", "capability", "dtype", "complaint"),
    [
        (INT8, (10, 0), BF16, r"is in int8, smoothing 0\.5.*sm_100 multiplies INT8.*`longtake quantize --to fp8`"),
        (INT8, (10, 3), BF16, r"sm_103 multiplies INT8"),
        (FP8, (8, 0), BF16, r"is in fp8.*sm_80 does not multiply FP8; .*`longtake quantize --to int8`"),
        (FP8, (8, 6), BF16, r"sm_86 does not multiply FP8"),
        (FP8, (9, 0), FP32, r"come in torch\.bfloat16, not in torch\.float32; say --dtype bfloat16"),
    ],
)
def test_a_format_is_refused_by_name_on_chips_that_are_not_made_for_it(
    monkeypatch: pytest.MonkeyPatch, recipe: QuantizationConfig, capability: tuple[int, int], dtype: torch.dtype,
    complaint: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config = replace(preset("longlive-1.3b").transformer, quantization=recipe)
    with pytest.raises(ConfigError, match=complaint):
        require_runnable(config, EAGER, torch.device("cuda"), dtype)
    require_runnable(config, EAGER, torch.device("cpu"), dtype)

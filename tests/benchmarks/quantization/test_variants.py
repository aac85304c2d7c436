"""Ways to round a transformer, where they run."""

from __future__ import annotations

import pytest

from benchmarks.quantization.variants import runnable, whole
from tests.support.quantized import POCKET


@pytest.mark.parametrize(
    ("capability", "left_out"),
    [
        (None, set()),
        ((8, 9), {"fp8", "fp8, nearest"}),
        ((8, 0), {"fp8", "fp8, nearest", "fp8, the rest in bf16"}),
        ((10, 0), {variant.name for variant in whole(POCKET)} - {"bf16", "fp8, the rest in bf16"}),
    ],
    ids=["CPU", "sm_89", "sm_80", "sm_100"],
)
def test_what_a_card_does_not_run_is_left_out_and_said(
    capability: tuple[int, int] | None, left_out: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {variant.name for variant in runnable(whole(POCKET), capability)}
    assert kept == {variant.name for variant in whole(POCKET)} - left_out
    assert {line.strip().split(": left out, ")[0] for line in capsys.readouterr().out.splitlines()} == left_out

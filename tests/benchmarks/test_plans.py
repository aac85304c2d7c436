"""The benchmark of plans, on a graph small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.plans import CARDS, NOT_KNOWN, SIZE, Built, as_text, refusal, subjects
from engines.plans.libraries import plan_builder
from engines.plans.tensorrt_builder import Card, TensorRTBuilder
from tests.support import fake_tensorrt
from tests.support.onnx_graphs import tiny_graph

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed, the extra `plans`"
)

BUILT = Built("TAEHV", "decoder-steady-3", "fp16", "sm_80,sm_89", 588, None, 24_000_000, 0.4, 180_000_000)


@needs_rtx
def test_a_row_says_what_the_builder_says(tmp_path: Path) -> None:
    built = Built.here(plan_builder("tensorrt-rtx"), "TAEHV", tiny_graph(tmp_path / "graph"), ",".join(CARDS))
    assert (built.graph, built.layers) == ("decoder-steady-1", 3)
    assert built.activation_bytes is not None
    assert built.plan_bytes > 10
    assert built.host_bytes > 0


def test_a_row_reads_like_this() -> None:
    wanted = "| TAEHV | decoder-steady-3 | sm_80, sm_89 | 588 | unknown | 24.0 | 0.40 | 180.0 |"
    assert str(BUILT) == wanted


DOCUMENT = {
    "library": "tensorrt-rtx 1.7",
    "machine": {"processor": "a processor"},
    "size": SIZE,
    "not_known": NOT_KNOWN,
    "hopper": "there is none",
    "shown_streams": 8,
    "int8_convolutions": {"convolutions": 23, "median_psnr_db": 45.7, "worst_psnr_db": 44.5},
}


def test_the_text_says_what_is_not_known() -> None:
    text = as_text(DOCUMENT, [BUILT])
    assert "No plan was run" in text
    assert "2,102.6 MB" in text
    assert "45.7 dB in the median, 44.5 dB in the worst block" in text
    assert str(BUILT) in text


def denoiser(activation_bytes: int | None) -> Built:
    return replace(BUILT, subject="denoiser, 2 of 30 layers", activation_bytes=activation_bytes)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([denoiser(280_000_000)], "take 280.0 MB at most, so they are never there"),
        ([denoiser(280_000_000), denoiser(2_200_000_000)], "take 2,200.0 MB at most, so they may be there"),
        ([denoiser(None)], "what its activations take is not known"),
    ],
    ids=["small", "large", "unknown"],
)
def test_whether_all_scores_are_ever_there_is_told_by_what_activations_take(rows: list[Built], said: str) -> None:
    assert said in as_text(DOCUMENT, rows)


@pytest.mark.parametrize(
    ("in_int8", "said"),
    [(900, "take 1.12 to 1.12 times as much in INT8"), (400, "take 0.50 to 0.50"), (None, "not known")],
)
def test_what_int8_does_to_activations_is_told(in_int8: int | None, said: str) -> None:
    plain = replace(BUILT, activation_bytes=800)
    assert said in as_text(
        DOCUMENT, [plain, replace(plain, graph="decoder-steady-3-int8", activation_bytes=in_int8)]
    )


@needs_rtx
def test_hopper_is_refused_by_name() -> None:
    assert refusal(plan_builder("tensorrt-rtx")).startswith("there is no TensorRT-RTX for sm_90, Hopper")


def test_a_builder_that_takes_hopper_is_noticed() -> None:
    builder = TensorRTBuilder(fake_tensorrt, "", Card("sm_90", "NVIDIA H100"))
    with pytest.raises(AssertionError, match="builds for sm_90 now"):
        refusal(builder)


def test_the_subjects_are_of_true_width() -> None:
    model = subjects(SIZE)[0].model
    assert (model.transformer.dim, model.transformer.ffn_dim, model.transformer.layers) == (1536, 8960, 2)
    assert (model.text_encoder.dim, model.text_encoder.ffn_dim, model.text_encoder.layers) == (4096, 10240, 1)
    assert (model.stream.height, model.stream.width) == SIZE

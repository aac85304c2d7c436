"""Stages by all engines of a card, on a machine that has none: PyTorch and a stand-in for TensorRT on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import text_encoder
from benchmarks.decoders import Codec
from benchmarks.measure import stage_engines
from benchmarks.measure.stage_engines import Engine, EngineRow, Subject, measure
from benchmarks.text_encoder import Encoding
from engines.export import exporter
from engines.plans.tensorrt_builder import Card
from tests.support import fake_tensorrt_runtime
from tests.support.fake_tensorrt_runtime import Builder

CPU = torch.device("cpu")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With both libraries."""
    monkeypatch.setattr(Card, "here", lambda: Card("sm_89", "RTX 4090"))
    monkeypatch.setattr(stage_engines, "plan_builder", lambda library: Builder(library, tmp_path / "kept"))
    monkeypatch.setattr(stage_engines, "plan_module", lambda library: fake_tensorrt_runtime)


COMPILED = ("fused", "torch.compile")
"""Those that compile, which takes a minute."""


def rows_of(subject: Subject, engines: Iterator[Engine]) -> dict[str, EngineRow]:
    """Without those that compile."""
    chosen = [engine for engine in engines if engine.name not in COMPILED]
    return {row.engine: row for row in measure(subject, chosen, CPU, runs=1)}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.of("pocket", (32, 48))


@pytest.mark.usefixtures("card")
def test_a_decoder_is_measured_by_pytorch_and_by_all_plans(codec: Codec, tmp_path: Path) -> None:
    rows = rows_of(codec.subject(CPU), codec.on_card(CPU, tmp_path))
    assert list(rows) == [
        "PyTorch", "tensorrt-rtx", "tensorrt-rtx, INT8 convolutions", "tensorrt", "tensorrt, INT8 convolutions",
    ]  # fmt: skip
    assert all(row.ms > 0 and not row.failed for row in rows.values())
    assert 0 < rows["tensorrt"].difference < rows["PyTorch"].difference < 0.1
    assert rows["tensorrt"].difference < rows["tensorrt, INT8 convolutions"].difference < 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's compiler imports it.
def test_pytorch_decodes_the_same_on_fused_operations_and_compiled(codec: Codec, tmp_path: Path) -> None:
    chosen = [engine for engine in codec.on_card(CPU, tmp_path) if engine.name in ("PyTorch", *COMPILED)]
    plain, *others = measure(codec.subject(CPU), chosen, CPU, runs=1)
    assert [row.engine for row in others] == list(COMPILED)
    assert all(row.ms > 0 and not row.failed and row.difference < 2 * plain.difference for row in others)


def test_the_memory_of_a_card_is_what_torch_took_at_its_peak_and_what_libraries_took_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = {"memory_allocated": 100, "max_memory_allocated": 100, "memory_reserved": 200}
    for name in taken:
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: taken[name])
    free = [1000 - 200 - 50]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 1000))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    memory = stage_engines._Memory(torch.device("cuda"))
    # The cache grows by 100, of which 70 are in use at once; a library takes 30.
    taken |= {"max_memory_allocated": 170, "memory_reserved": 300}
    free[0] -= 130
    assert memory.peak() == 70 + 30


@pytest.mark.usefixtures("card")
def test_so_is_a_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "LOW", torch.float32)  # onnxruntime does not compute in bf16.
    encoding = Encoding.of("pocket", 1, 16)
    rows = rows_of(encoding.subject(CPU), encoding.on_card(CPU, tmp_path))
    assert list(rows) == ["PyTorch", "tensorrt-rtx", "tensorrt"]
    assert all(row.ms > 0 and row.difference < 2e-5 for row in rows.values())
    assert rows["tensorrt"].stage == "pocket, 1 of 2 layers"


def test_on_hopper_it_is_said_in_a_line_that_there_is_no_rtx(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "here", lambda: Card("sm_90", "NVIDIA H200"))
    monkeypatch.setattr("engines.plans.libraries.find_spec", lambda name: None)
    rows = rows_of(codec.subject(CPU), codec.on_card(CPU, tmp_path))
    assert rows["tensorrt-rtx"].refused == "there is no TensorRT-RTX for sm_90, Hopper"
    assert rows["tensorrt"].refused.startswith("tensorrt is not installed, which builds plans")
    assert rows["PyTorch"].ms > 0


@pytest.mark.usefixtures("card")
def test_without_an_exporter_it_is_said_what_is_missing(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    rows = rows_of(codec.subject(CPU), codec.on_card(CPU, tmp_path))
    assert "exporting a graph takes onnx and onnxscript" in rows["tensorrt"].refused


def test_an_engine_that_fails_leaves_the_others_be() -> None:
    def fail() -> torch.Tensor:
        raise RuntimeError("the card has\nfallen off the bus")

    engines = [Engine("first", lambda: fail), Engine("second", lambda: lambda: torch.ones(1))]
    failed, made = measure(Subject("TAEHV", "a block", torch.zeros(1)), engines, CPU, runs=1)
    assert str(failed) == "| TAEHV | a block | first | FAILED: the card has fallen off the bus |||"
    assert (made.engine, made.difference, made.peak_bytes) == ("second", 1.0, None)
    assert stage_engines.report([failed, made], CPU, None) == 1

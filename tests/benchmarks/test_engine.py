"""The benchmark of the engine, on a model that takes no time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.engine import _peak, measure
from benchmarks.measure.delivery import after_one
from benchmarks.measure.machine import Rates
from benchmarks.measure.subject import Options
from engines.config.presets import preset
from engines.config.stream import StreamConfig


def test_the_call_that_compiles_is_not_counted() -> None:
    times = iter([900.0, 1.0, 2.0, 3.0])
    assert after_one(lambda: next(times), 3).ms == (1.0, 2.0, 3.0)


def test_memory_that_graphs_work_on_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 24)
    assert _peak(torch.device("cuda:0")) == (20, 24)


def test_a_report_says_what_ran_and_what_a_viewer_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rates, "measure", lambda device, dtype, eight_bits: Rates(1e9, 1e9))
    model = replace(preset("tiny-taehv"), stream=StreamConfig(height=16, width=32))
    report = measure(Options(model, torch.device("cpu"), torch.float32, runs=1, text=False))
    facts = json.loads(report.as_json())
    assert facts["kernels"].startswith("reference: attention")
    assert facts["delivery"]["frames_per_block"] == 12
    assert facts["delivery"]["waits"] is None
    assert len(facts["delivery"]["switch"]["ms"]) == len(facts["delivery"]["first"]["ms"]) == 5
    assert facts["stages"][0]["reserved_bytes"] is None
    assert "ms from a switched prompt to its first latent frame's pictures" in str(report)

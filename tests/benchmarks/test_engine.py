"""The benchmark of the engine, on a model that takes no time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.engine import Options, measure
from benchmarks.machine import Rates
from engines.config import StreamConfig
from engines.presets import preset


def test_a_report_says_what_ran_and_what_a_viewer_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rates, "measure", lambda device, dtype: Rates(1e9, 1e9))
    model = replace(preset("tiny-taehv"), stream=StreamConfig(height=16, width=32))
    report = measure(Options(model, torch.device("cpu"), torch.float32, runs=1, text=False))
    facts = json.loads(report.as_json())
    assert facts["kernels"].startswith("reference: attention")
    assert facts["delivery"]["frames_per_block"] == 12
    assert facts["delivery"]["waits"] is None
    assert len(facts["delivery"]["switch"]["ms"]) == len(facts["delivery"]["first"]["ms"]) == 2
    assert "ms from a switched prompt to its first latent frame's pictures" in str(report)

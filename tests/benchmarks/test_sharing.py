"""Sessions that share a device, the trace of a block and the compiled baseline, on a model that takes no time."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import compiled, sharing, trace
from benchmarks.kernel_cases.attention import DENSE
from benchmarks.kernels import Row, as_comparison
from benchmarks.measure.counts import Work
from benchmarks.measure.subject import Options
from benchmarks.measure.timing import Samples
from engines.config.presets import preset
from engines.config.stream import StreamConfig

MODEL = replace(preset("tiny-taehv"), stream=StreamConfig(height=16, width=32, window_frames=6))
OPTIONS = Options(MODEL, torch.device("cpu"), torch.float32, runs=2, text=True)


def test_sessions_take_turns_and_stages_have_threads() -> None:
    found = {part.name: part for part in sharing.measure(OPTIONS)}
    assert list(found) == [
        "1 in turn", "2 in turn", "3 in turn", "three threads, no text", "three threads, a text beside each block",
    ]  # fmt: skip
    assert {name: part.failed for name, part in found.items() if part.failed} == {}
    counts = [len(part.blocks.ms) for part in found.values() if part.blocks is not None]
    assert counts == [2, 4, 6, 2, 2]
    assert [name for name, part in found.items() if part.texts] == ["three threads, a text beside each block"]


def test_a_part_that_fails_is_written_down_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(options: Options, sessions: int) -> sharing.Times:
        raise torch.OutOfMemoryError(f"no room for {sessions}")

    monkeypatch.setattr(sharing, "in_turn", fail)
    monkeypatch.setattr(sharing, "read_options", lambda parser, arguments: OPTIONS)
    monkeypatch.setattr(sys, "argv", ["sharing", "--json", str(tmp_path / "sharing.json")])
    assert sharing.main() == 1
    parts = json.loads((tmp_path / "sharing.json").read_text())["shared"]
    assert parts[2]["failed"] == "OutOfMemoryError: no room for 3"
    assert parts[3]["failed"] is None
    assert parts[3]["frames_per_second"] > 0


def test_one_block_is_traced_with_its_stages(tmp_path: Path) -> None:
    file = tmp_path / "trace.json.gz"
    trace.trace(OPTIONS, file)
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert {"passes", "clean pass", "pictures", "aten::linear"} <= {event.get("name") for event in events}
    assert file.stat().st_size < 2 << 20


def test_the_compiled_pass_is_timed_beside_ours() -> None:
    found = compiled.passes(OPTIONS, partial(torch.compile, backend="eager"))
    assert list(found) == ["own kernels", "PyTorch", "torch.compile"]
    assert all(len(times.ms) == OPTIONS.runs for times in found.values())


def test_the_dense_call_is_shown_beside_the_one_through_bounds() -> None:
    rows = [
        Row("attention", provider, Work(1, 1), 0.0, 1.0, Samples((ms,)), None)
        for provider, ms in ((DENSE, 2.0), ("library", 2.5), ("triton", 3.0))
    ]
    assert as_comparison(rows) == "attention: library through device bounds 1.25 x the dense call"

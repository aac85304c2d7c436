"""The seams that only a GPU can break, as far as they can be tried without one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import seams
from benchmarks.host_time import Idle, IdleRunner
from benchmarks.measure.subject import Options
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.device.memory_budget import MemoryBudget
from engines.streaming.generator import Generator
from kernels.dispatch import KernelBackends
from tests.support.fake_capture import Recordings

MODEL = replace(preset("tiny-taehv"), stream=StreamConfig(height=16, width=32, window_frames=6))
OPTIONS = Options(MODEL, torch.device("cpu"), torch.float32, runs=2, text=False)


def test_on_a_cpu_all_are_tried_and_what_can_be_told_holds() -> None:
    found = seams.measure(OPTIONS)
    assert {seam.name: seam.failed for seam in found if seam.failed} == {}
    assert {seam.name: seam.holds for seam in found if seam.holds is not None} == {
        "out of memory": True, "release with queued work": True,
    }  # fmt: skip
    assert len(found) == 6


def test_a_size_after_the_warm_up_is_warned_of_and_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings, made = Recordings(), list[int]()

    def select(transformer: Idle, backends: KernelBackends, *, graphs: bool) -> IdleRunner:
        return IdleRunner(transformer, recordings)

    end_warm_up = Generator.end_warm_up

    def noted(self: Generator) -> None:
        end_warm_up(self)
        made.append(recordings.made)

    monkeypatch.setattr(seams, "build_transformer", lambda options: Idle(options.model.transformer))
    monkeypatch.setattr("engines.streaming.builder.select_runner", select)
    monkeypatch.setattr(Generator, "end_warm_up", noted)
    found = {seam.name: seam for seam in seams.measure(replace(OPTIONS, graphs=True))}
    assert found["a size after the warm-up"].holds
    assert made == [recordings.made]


def test_what_is_not_as_its_twin_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: a.dtype == torch.uint8 and equal(a, b))
    monkeypatch.setattr(seams, "read_options", lambda parser, arguments: OPTIONS)
    monkeypatch.setattr(sys, "argv", ["seams", "--json", str(tmp_path / "seams.json")])
    assert seams.main() == 1
    kept = {seam["name"]: seam for seam in json.loads((tmp_path / "seams.json").read_text())["seams"]}
    assert kept["release with queued work"]["holds"] is False
    assert kept["out of memory"]["facts"]["same"] is False


def test_what_fails_is_written_down_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: seams.SeamBenchmark) -> seams.Found:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(seams.SeamBenchmark, "host_copy", fail)
    found = {seam.name: seam.failed for seam in seams.measure(OPTIONS)}
    assert found.pop("host copy beside a block") == "RuntimeError: an illegal memory access"
    assert set(found.values()) == {None}


@pytest.mark.parametrize(("free", "holds"), [(300, True), (299, False)])
def test_the_reserve_holds_what_is_taken_beside_sessions_and_working_memory(free: int, holds: bool) -> None:
    budget = MemoryBudget(free=1000, working=200, reserve=100)
    found = seams.beside_sessions(budget, free, kept=400)
    assert found.holds is holds
    assert found.facts["beside_bytes"] == 1000 - free - 400

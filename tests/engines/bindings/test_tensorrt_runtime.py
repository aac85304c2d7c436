from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from engines.bindings.stage_session import StageSession
from engines.bindings.tensorrt_runtime import TensorRTRuntime
from engines.errors import PlanError
from engines.export.graph import StageGraph
from tests.engines.bindings.runtimes import CPU
from tests.support import fake_tensorrt_runtime
from tests.support.exported import Exported


def load(graph: StageGraph, plan: StageGraph, cache: Path | None = None) -> TensorRTRuntime:
    return TensorRTRuntime(fake_tensorrt_runtime, graph, str(plan.folder).encode(), CPU, cache)


@pytest.fixture
def graph(exported: Exported) -> StageGraph:
    return exported.graphs["decoder-steady-1"]


def test_a_plan_that_the_library_does_not_take_is_refused(graph: StageGraph) -> None:
    with pytest.raises(PlanError, match=r"fake_tensorrt_runtime 11.0 cannot load the plan of decoder-steady-1"):
        TensorRTRuntime(fake_tensorrt_runtime, graph, b"of another card", CPU)


def test_the_plan_of_another_graph_is_refused_by_what_differs(exported: Exported, graph: StageGraph) -> None:
    with pytest.raises(PlanError, match="the plan is not one of decoder-steady-1: latents differs"):
        load(graph, exported.graphs["decoder-steady-3"])


def test_an_address_that_is_refused_is_an_error(graph: StageGraph) -> None:
    with pytest.raises(RuntimeError, match="does not take latents at 0x0"):
        load(graph, graph).set_address("latents", 0)


def no_process() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_what_was_compiled_here_is_found_by_the_next_process(exported: Exported, tmp_path: Path) -> None:
    first, cache = exported.graphs["decoder-first-1"], tmp_path / "runtime.cache"
    latents = {"latents": torch.zeros(first.input("latents").shape)}
    (tmp_path / f".runtime.cache.{no_process()}").write_bytes(b"what a killed process left")
    StageSession(load(first, first, cache), CPU).run(latents)
    assert cache.read_bytes() == b"compiled here"
    cache.write_bytes(b"compiled before")
    StageSession(load(first, first, cache), CPU).run(latents)
    assert cache.read_bytes() == b"compiled before"
    assert list(tmp_path.iterdir()) == [cache]


def test_what_cannot_be_read_is_compiled_again(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = exported.graphs["decoder-first-1"]
    (tmp_path / "runtime.cache").mkdir()
    session = StageSession(load(first, first, tmp_path / "runtime.cache"), CPU)
    session.run({"latents": torch.zeros(first.input("latents").shape)})
    assert caplog.messages == ["compiled code is not read", "compiled code is not kept"]


def test_where_nothing_can_be_kept_a_plan_runs_all_the_same(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = exported.graphs["decoder-first-1"]
    session = StageSession(load(first, first, tmp_path / "gone" / "runtime.cache"), CPU)
    session.run({"latents": torch.zeros(first.input("latents").shape)})
    assert caplog.messages == ["compiled code is not kept"]

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from engines.bindings.stage_session import StageSession
from engines.errors import StreamError
from engines.export.exporter import GraphFacts, export_graph
from engines.export.graph import StageGraph
from tests.engines.bindings.runtimes import CPU, RUNTIMES, on_tensorrt
from tests.support.fake_cuda import install, on_device

ROWS = torch.arange(12.0).view(3, 4)


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> StageGraph:
    """Of rows [3, 4]."""

    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (2 * x,)

    facts = GraphFacts("text-3", "text", (), "fp32", "weights")
    folder = tmp_path_factory.mktemp("graphs") / "doubling"
    return export_graph(Doubling(), {"rows": torch.zeros(3, 4)}, ["doubled"], facts, folder)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_reads_and_writes_tensors(doubling: StageGraph, runtime: str) -> None:
    session = StageSession(RUNTIMES[runtime](doubling), CPU)
    first, second = (session.run({"rows": rows})["doubled"] for rows in (ROWS, ROWS + 1))
    assert torch.equal(first, 2 * ROWS)
    assert torch.equal(second, 2 * ROWS + 2)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_input_with_gaps_is_taken_as_it_reads(doubling: StageGraph, runtime: str) -> None:
    session = StageSession(RUNTIMES[runtime](doubling), CPU)
    assert torch.equal(session.run({"rows": ROWS.t().contiguous().t()})["doubled"], 2 * ROWS)


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS.double()], ids=["shape", "dtype"])
def test_an_input_that_does_not_fit_is_refused_by_name(doubling: StageGraph, rows: torch.Tensor) -> None:
    session = StageSession(on_tensorrt(doubling), CPU)
    with pytest.raises(StreamError, match=r"text-3 takes rows \[3, 4\] float32; it is given"):
        session.run({"rows": rows})


def test_an_input_on_another_device_is_refused(doubling: StageGraph) -> None:
    with pytest.raises(StreamError, match="text-3 runs on cpu; rows is on"):
        StageSession(on_tensorrt(doubling), CPU).run({"rows": on_device(ROWS)})


def test_on_a_card_a_graph_runs_in_the_current_stream(
    doubling: StageGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = install(monkeypatch)
    monkeypatch.setattr(torch, "empty", partial(_on_the_host, torch.empty))
    runtime: Any = on_tensorrt(doubling)
    session = StageSession(runtime, torch.device("cuda"))
    side = torch.cuda.Stream()
    session.run({"rows": on_device(ROWS)})
    with torch.cuda.stream(side):
        session.run({"rows": on_device(ROWS)})
    assert runtime._context.streams == [cuda.main.cuda_stream, side.cuda_stream]


def _on_the_host(empty: Any, *shape: Any, **options: Any) -> torch.Tensor:
    return empty(*shape, **(options | {"device": "cpu"}))

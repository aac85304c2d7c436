from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from engines.bindings import onnx_runtime
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.errors import ConfigError, PlanError
from engines.export.graph import StageGraph
from tests.support.exported import Exported


@pytest.fixture
def graph(exported: Exported, tmp_path: Path) -> StageGraph:
    """A copy, to be damaged."""
    whole = exported.graphs["decoder-first-1"]
    for file in whole.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return replace(whole, folder=tmp_path)


@pytest.mark.parametrize("file", ["graph.onnx", "graph.onnx.data"])
def test_a_graph_that_is_cut_short_is_refused_by_name(graph: StageGraph, file: str) -> None:
    path = graph.folder / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PlanError, match=f"onnxruntime cannot load {graph.path}"):
        OnnxRuntime(graph, graph.path, threads=1)


def test_a_graph_without_its_weights_is_refused_by_name(graph: StageGraph) -> None:
    (graph.folder / "graph.onnx.data").unlink()
    with pytest.raises(PlanError, match=f"onnxruntime cannot load {graph.path}"):
        OnnxRuntime(graph, graph.path, threads=1)


def test_a_missing_package_is_named_with_the_remedy(graph: StageGraph) -> None:
    missing = patch.object(onnx_runtime, "find_spec", return_value=None)
    with missing, pytest.raises(ConfigError, match=r"pip install 'longtake\[onnx\]'"):
        OnnxRuntime(graph, graph.path, threads=1)

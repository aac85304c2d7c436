from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from engines.errors import ConfigError
from engines.export import exporter
from engines.export.exporter import GraphFacts, export_graph
from engines.export.graph import StageGraph

MISSING = r"takes onnx and onnxscript, not installed here: pip install 'longtake\[onnx\]'"

FACTS = GraphFacts("text-1", "text", (), "fp32", "weights")


def export(network: nn.Module, folder: Path) -> StageGraph:
    return export_graph(network, {"rows": torch.zeros(1, 3)}, ["y"], FACTS, folder)


def test_a_graph_says_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    graph = export(nn.Linear(3, 5), tmp_path / "models" / "graph")
    assert [str(spec) for spec in (*graph.inputs, *graph.outputs)] == ["[1, 3] float32", "[1, 5] float32"]
    assert graph.name == "text-1"


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    before = export(nn.Linear(3, 5), tmp_path / "graph")
    with (
        patch.object(StageGraph, "save", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space left"),
    ):
        export(nn.Linear(3, 4), tmp_path / "graph")
    assert StageGraph.load(tmp_path / "graph") == before
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_an_export_replaces_what_was_there(tmp_path: Path) -> None:
    export(nn.Linear(3, 5), tmp_path / "graph")
    assert export(nn.Linear(3, 4), tmp_path / "graph").output("y").shape == (1, 4)


def test_a_graph_does_not_say_where_its_code_lies(tmp_path: Path) -> None:
    written = export(nn.Linear(3, 5), tmp_path / "graph").path.read_bytes()
    assert b"Linear" not in written
    assert str(Path(nn.__file__).parents[2]).encode() not in written


def test_a_missing_package_is_named_with_the_remedy(tmp_path: Path) -> None:
    with patch.object(exporter, "find_spec", return_value=None), pytest.raises(ConfigError) as error:
        export(nn.Linear(3, 5), tmp_path / "graph")
    assert (
        str(error.value)
        == "exporting a graph takes onnx and onnxscript, not installed here: pip install 'longtake[onnx]'"
    )

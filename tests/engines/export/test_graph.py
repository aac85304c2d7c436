from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines.errors import ConfigError, PlanError
from engines.export.graph import StageGraph, TensorSpec

LATENTS = TensorSpec("latents", "float32", (1, 3, 16, 4, 6))
PAST = TensorSpec("past_0", "float16", (1, 2, 8))


@pytest.fixture
def graph(tmp_path: Path) -> StageGraph:
    made = StageGraph(
        tmp_path, "decoder-steady-3", "decoder", (LATENTS, PAST), (replace(PAST, name="kept_0"),),
        (("past_0", "kept_0"),), 20, "fp32", "abc",
    )  # fmt: skip
    made.path.touch()
    made.save()
    return made


def test_a_graph_loads_as_it_was_saved(graph: StageGraph) -> None:
    assert StageGraph.load(graph.folder) == graph


def test_tensors_are_found_by_name(graph: StageGraph) -> None:
    assert graph.input("latents").nbytes == 3 * 16 * 4 * 6 * 4
    assert graph.output("kept_0").shape == (1, 2, 8)
    with pytest.raises(ConfigError, match="no tensor 'kept_1'; there are kept_0"):
        graph.output("kept_1")


def test_state_that_changes_its_shape_is_refused(graph: StageGraph) -> None:
    longer = TensorSpec("kept_0", "float16", (1, 3, 8))
    with pytest.raises(ConfigError, match=r"kept_0 \[1, 3, 8\] float16 cannot take the place of past_0"):
        replace(graph, outputs=(longer,))


def test_two_tensors_of_one_name_are_refused(graph: StageGraph) -> None:
    with pytest.raises(ConfigError, match="two tensors of one name"):
        replace(graph, outputs=(*graph.outputs, LATENTS))


def test_a_folder_without_a_graph_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=f"there is no graph in {tmp_path / 'none'}"):
        StageGraph.load(tmp_path / "none")


def test_facts_without_the_graph_are_refused(graph: StageGraph) -> None:
    graph.path.unlink()
    with pytest.raises(PlanError, match=r"graph\.onnx is not there"):
        StageGraph.load(graph.folder)


@pytest.mark.parametrize("change", [{"version": 2}, {"inputs": 1}, {"state": [["past_0", "gone"]]}, {"more": 1}])
def test_damaged_facts_are_refused_by_name(graph: StageGraph, change: dict[str, object]) -> None:
    path = graph.folder / "graph.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PlanError, match=r"graph\.json is damaged"):
        StageGraph.load(graph.folder)


def test_facts_that_are_cut_short_are_refused_by_name(graph: StageGraph) -> None:
    path = graph.folder / "graph.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(PlanError, match=r"graph\.json is damaged"):
        StageGraph.load(graph.folder)

"""Plans by TensorRT-RTX itself, where it is installed, and by a stand-in for TensorRT, which needs a card."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from engines.errors import ConfigError, PlanError, PlanStopped
from engines.plans import libraries, onnx_builder
from engines.plans.builder import BuildStep, PlanBuilder
from engines.plans.libraries import plan_builder
from engines.plans.tensorrt_builder import Card, TensorRTBuilder
from tests.support import fake_tensorrt
from tests.support.onnx_graphs import attention_graph, tiny_graph

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed, the extra `plans`"
)

ADA = Card("sm_89", "NVIDIA L4")


def go_on(step: BuildStep) -> bool:
    return True


@pytest.fixture(params=[pytest.param("tensorrt-rtx", marks=needs_rtx), "tensorrt"])
def builder(request: pytest.FixtureRequest) -> PlanBuilder:
    if request.param == "tensorrt":
        return TensorRTBuilder(fake_tensorrt, "its terms", ADA)
    return plan_builder("tensorrt-rtx")


def test_a_plan_comes_with_what_its_builder_says_of_it(builder: PlanBuilder, tmp_path: Path) -> None:
    steps: list[BuildStep] = []

    def keep(step: BuildStep) -> bool:
        steps.append(step)
        return True

    built = builder.build(tiny_graph(tmp_path / "graph"), builder.target(["sm_89"]), b"", keep)
    assert built.data.nbytes > 10
    assert built.layers == 3
    assert built.activation_bytes is not None
    assert built.activation_bytes > 0
    assert built.seconds > 0
    assert any(step.phase == "Building engine" for step in steps)
    assert all(1 <= step.done <= step.steps for step in steps)


def test_a_build_can_be_stopped(builder: PlanBuilder, tmp_path: Path) -> None:
    with pytest.raises(PlanStopped, match="decoder-steady-1 was stopped"):
        builder.build(tiny_graph(tmp_path / "graph"), builder.target(["sm_89"]), b"", lambda step: False)


def test_what_goes_wrong_as_progress_is_shown_comes_out(builder: PlanBuilder, tmp_path: Path) -> None:
    def fail(step: BuildStep) -> bool:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        builder.build(tiny_graph(tmp_path / "graph"), builder.target(["sm_89"]), b"", fail)


def test_a_graph_that_is_none_is_refused_in_the_words_of_the_library(builder: PlanBuilder, tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph", operator="Tanh")
    if builder.library.name == "tensorrt-rtx":
        graph.path.write_bytes(graph.path.read_bytes()[:-40])
    with pytest.raises(PlanError, match=rf"cannot read {graph.path}: \S"):
        builder.build(graph, builder.target(["sm_89"]), b"", go_on)


def test_a_graph_without_a_kernel_is_refused_in_the_words_of_the_library(tmp_path: Path) -> None:
    builder, graph = TensorRTBuilder(fake_tensorrt, "", ADA), tiny_graph(tmp_path / "graph", operator="Sigmoid")
    with pytest.raises(PlanError, match=r"tensorrt 11\.4\.0 cannot build decoder-steady-1: could not find any"):
        builder.build(graph, builder.target(["sm_89"]), b"", go_on)


def test_attention_without_a_kernel_of_its_own_is_several(builder: PlanBuilder, tmp_path: Path) -> None:
    graph = attention_graph(tmp_path / "graph")
    assert builder.build(graph, builder.target(["sm_89"]), b"", go_on).data.nbytes > 10


@needs_rtx
def test_one_plan_serves_several_kinds_of_card(tmp_path: Path) -> None:
    builder, graph = plan_builder("tensorrt-rtx"), tiny_graph(tmp_path / "graph")
    target = builder.target(["sm_120", "sm_86", "sm_89"])
    assert target.capabilities == ("sm_86", "sm_89", "sm_120")
    assert builder.build(graph, target, b"", go_on).data.nbytes > 10


@needs_rtx
@pytest.mark.parametrize(
    ("capability", "complaint"),
    [
        ("sm_90", r"there is no TensorRT-RTX for sm_90, Hopper: .* knows .*sm_89.*; .* use --library tensorrt$"),
        ("sm_100", "there is no TensorRT-RTX for sm_100, Blackwell for data centres"),
        ("sm_70", "there is no TensorRT-RTX for sm_70: "),
    ],
)
def test_cards_that_tensorrt_rtx_does_not_know_are_refused_by_name(capability: str, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan_builder("tensorrt-rtx").target(["sm_89", capability])


@pytest.mark.parametrize(
    ("capabilities", "complaint"),
    [
        ([], "no card is named"),
        (["ada"], "'ada' is no compute capability"),
        (["sm_89", "sm_89"], "sm_89, sm_89 names a compute capability twice"),
    ],
)
def test_what_names_no_card_is_refused(builder: PlanBuilder, capabilities: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        builder.target(capabilities)


def test_tensorrt_builds_for_its_own_card_alone(tmp_path: Path) -> None:
    builder = TensorRTBuilder(fake_tensorrt, "", ADA)
    assert builder.target(["sm_89"]).device == "NVIDIA L4"
    with pytest.raises(PlanError, match=r"NVIDIA L4 is sm_89, not sm_90; build there$"):
        builder.target(["sm_89", "sm_90"])
    with pytest.raises(PlanError, match=r"not sm_120; build there, or with --library tensorrt-rtx$"):
        builder.target(["sm_120"])


def test_what_tensorrt_timed_is_handed_to_its_next_build(tmp_path: Path) -> None:
    builder, graph = TensorRTBuilder(fake_tensorrt, "", ADA), tiny_graph(tmp_path / "graph")
    first = builder.build(graph, builder.target(["sm_89"]), b"", go_on)
    second = builder.build(graph, builder.target(["sm_89"]), first.timing_cache, go_on)
    assert second.timing_cache == b"timed timed "


@pytest.mark.parametrize(("library", "extra"), [("tensorrt-rtx", "plans"), ("tensorrt", "tensorrt")])
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    library: libraries.LibraryName, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=rf"{library} is not installed, .* pip install 'longtake\[{extra}\]'"):
        plan_builder(library)


def test_tensorrt_needs_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: name)
    monkeypatch.setattr(libraries, "import_module", lambda name: fake_tensorrt)
    with pytest.raises(PlanError, match="this machine has none that PyTorch can use"):
        plan_builder("tensorrt")


def test_a_graph_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, graph = plan_builder("onnxruntime"), tiny_graph(tmp_path / "graph")
    monkeypatch.setattr(onnx_builder, "MOST_BYTES", 100)
    with pytest.raises(PlanError, match=r"has [\d,]+ bytes, and onnxruntime's plans are files of 100 at most"):
        builder.build(graph, builder.target(["cpu"]), b"", go_on)

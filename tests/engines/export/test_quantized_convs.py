"""A graph's convolutions in INT8, by onnxruntime beside the same graph as it was."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from engines.errors import ConfigError
from engines.export.exporter import GraphFacts, export_graph
from engines.export.graph import StageGraph
from engines.export.quantized_convs import Ranges, quantize_convs, range_name, watch_convs
from engines.plans.libraries import plan_builder

FACTS = GraphFacts("decoder-first-1", "decoder", (), "fp32", "weights")
PICTURES = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
WIDE = ("1.weight", "3.weight")
"""Of the convolutions below those with channels enough; one of them is run twice."""


class Twice(nn.Sequential):
    """A narrow convolution, a wide one that runs twice, another wide one and a narrow one."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor]:
        first, wide, silu, wider, last = self
        return (last(silu(wider(silu(wide(silu(wide(first(x)))))))),)


def exported(folder: Path, dtype: torch.dtype = torch.float32) -> StageGraph:
    return export_graph(Twice().to(dtype), {"x": PICTURES.to(dtype)}, ["y"], FACTS, folder)


def run(graph: StageGraph, pictures: Tensor = PICTURES) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in graph.outputs]
    return dict(zip(names, session.run(names, {"x": pictures.numpy()}), strict=True))


def ranges_in(graph: StageGraph, folder: Path) -> Ranges:
    made = run(watch_convs(graph, folder))
    return {weight: float(made[range_name(weight)]) for weight in WIDE}


@pytest.fixture
def graph(tmp_path: Path) -> StageGraph:
    return exported(tmp_path / "graph")


@pytest.fixture
def ranges(graph: StageGraph, tmp_path: Path) -> Ranges:
    return ranges_in(graph, tmp_path / "watched")


def test_a_watched_graph_gives_the_same_and_what_its_wide_convolutions_read(
    graph: StageGraph, tmp_path: Path
) -> None:
    seen, network = dict[str, float](), Twice().requires_grad_(False)
    for number in (1, 3):

        def keep(module: nn.Module, read: tuple[Tensor], name: str = f"{number}.weight") -> None:
            seen[name] = max(seen.get(name, 0.0), float(read[0].abs().max()))

        network[number].register_forward_pre_hook(keep)
    network(PICTURES)
    made = run(watch_convs(graph, tmp_path / "watched"))
    assert sorted(made) == sorted(["y", *(range_name(weight) for weight in WIDE)])
    np.testing.assert_allclose(made["y"], run(graph)["y"], atol=1e-6)
    for weight in WIDE:
        assert float(made[range_name(weight)]) == pytest.approx(seen[weight], rel=1e-5)


def test_only_wide_convolutions_are_in_int8(graph: StageGraph, ranges: Ranges, tmp_path: Path) -> None:
    made = quantize_convs(graph, ranges, tmp_path / "int8")
    assert (made.name, made.recipe) == ("decoder-first-1-int8", "fp32, convolutions in INT8")
    assert made.outputs == graph.outputs
    nodes = onnx.load(made.path).graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 3
    convs = [node for node in nodes if node.op_type == "Conv"]
    assert [node.input[1] for node in convs] == [
        "0.weight", "1.weight_read", "1.weight_read", "3.weight_read", "4.weight"
    ]  # fmt: skip


def test_weights_are_within_half_a_step_of_what_they_were(
    graph: StageGraph, ranges: Ranges, tmp_path: Path
) -> None:
    made = onnx.load(quantize_convs(graph, ranges, tmp_path / "int8").path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for weight in WIDE:
        assert weight not in stored
        wanted = dict(Twice().state_dict())[weight].numpy()
        scale = stored[f"{weight}_scale"].reshape(-1, 1, 1, 1)
        assert stored[f"{weight}_int8"].dtype == np.int8
        assert np.abs(stored[f"{weight}_int8"] * scale - wanted).max() <= 0.501 * scale.max()
        assert np.abs(stored[f"{weight}_int8"]).max(axis=(1, 2, 3)).tolist() == [127] * len(wanted)


def error_of(graph: StageGraph, ranges: Ranges, folder: Path) -> float:
    wanted, made = run(graph)["y"], run(quantize_convs(graph, ranges, folder / "int8"))["y"]
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


def test_the_pictures_are_near_those_of_the_graph(graph: StageGraph, ranges: Ranges, tmp_path: Path) -> None:
    assert 1e-4 < error_of(graph, ranges, tmp_path) < 0.01


def test_a_range_that_is_too_small_clips(graph: StageGraph, ranges: Ranges, tmp_path: Path) -> None:
    """Else the ranges would not matter."""
    small = {weight: reach / 4 for weight, reach in ranges.items()}
    assert error_of(graph, small, tmp_path) > 5 * error_of(graph, ranges, tmp_path)


def test_a_transposed_convolution_has_a_scale_for_each_output_too(tmp_path: Path) -> None:
    class Doubled(nn.ConvTranspose2d):
        def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (super().forward(x),)

    torch.manual_seed(4)
    network, x = Doubled(32, 40, 4, stride=2, padding=1), torch.randn(1, 32, 8, 8)
    graph = export_graph(network, {"x": x}, ["y"], FACTS, tmp_path / "graph")
    made = quantize_convs(graph, {"weight": float(x.abs().max())}, tmp_path / "int8")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(made.path).graph.initializer}
    assert np.abs(stored["weight_int8"]).max(axis=(0, 2, 3)).tolist() == [127] * 40
    wanted, found = run(graph, x)["y"], run(made, x)["y"]
    assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.01


@pytest.mark.parametrize("reach", [float("nan"), float("inf"), -1.0, None])
def test_a_range_that_is_not_known_is_refused(graph: StageGraph, tmp_path: Path, reach: float | None) -> None:
    ranges = {"1.weight": 1.0} | ({} if reach is None else {"3.weight": reach})
    with pytest.raises(ConfigError, match=r"the range of what 3\.weight reads is not known"):
        quantize_convs(graph, ranges, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed, the extra `plans`")
def test_a_plan_is_built_of_it(ranges: Ranges, tmp_path: Path) -> None:
    builder, graph = plan_builder("tensorrt-rtx"), exported(tmp_path / "half", torch.float16)
    made = quantize_convs(graph, ranges, tmp_path / "int8")
    assert builder.build(made, builder.target(["sm_89"]), b"", lambda step: True).layers > 10

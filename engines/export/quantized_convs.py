"""Convolutions of a graph in INT8, as quantize and dequantize operators around them: all that TensorRT reads.

Transposed ones, which double pictures, are among them. Weights have a scale for each output channel, inputs one
for the whole tensor, which must be known beforehand: it follows from the largest value seen in runs of the same
graph with its ranges among its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from engines.config.validation import require
from engines.export.exporter import require_exporter, whole_folder
from engines.export.graph import GRAPH_FILE, StageGraph, TensorSpec

if TYPE_CHECKING:
    import onnx

LEAST_CHANNELS = 32
"""Of inputs and of outputs: below it tensor cores gain nothing, and the last layer's errors are seen."""

OUTPUTS = {"Conv": 0, "ConvTranspose": 1}
"""Where the outputs are in the shape of an operator's weight."""

INT8 = "int8"

STEPS = 127
LEAST = 1e-6
"""Of ranges: a tensor that was zero throughout has a scale nevertheless."""

Ranges = Mapping[str, float]
"""The largest absolute value of each convolution's input, by the name of its weight."""


@dataclass(frozen=True)
class PictureLoss:
    """What INT8 convolutions cost a decoder's pictures, against PyTorch's in fp32.

    `median_psnr_db` and `worst_psnr_db` are of the pictures of single blocks, of which there were `blocks`.
    """

    blocks: int
    median_psnr_db: float
    worst_psnr_db: float

    @override
    def __str__(self) -> str:
        return (
            f"{self.median_psnr_db} dB in the median, {self.worst_psnr_db} dB in the worst of {self.blocks} blocks"
        )


def int8_name(name: str) -> str:
    """What a graph of this name is called with its convolutions in INT8."""
    return f"{name}-{INT8}"


def int8_recipe(recipe: str) -> str:
    """What a graph with convolutions in INT8 has for one with this recipe."""
    return f"{recipe}, convolutions in INT8"


def range_name(weight: str) -> str:
    """What the range of a convolution's input comes out as."""
    return f"range_of_{weight}"


def watch_convs(graph: StageGraph, folder: Path) -> StageGraph:
    """The same graph in `folder`, which also returns the range of the input of every convolution to be quantized.

    Raises OSError; ConfigError if the packages for it are not installed.
    """
    require_exporter()
    import onnx
    from onnx import helper

    model = onnx.load(graph.path)
    specs = []
    for weight, inputs in _inputs(model).items():
        name, maxima = range_name(weight), []
        for number, read in enumerate(inputs):
            maxima.append(f"{name}_{number}")
            model.graph.node.append(helper.make_node("Abs", [read], [f"{name}_{number}_abs"]))
            model.graph.node.append(
                helper.make_node("ReduceMax", [f"{name}_{number}_abs"], [maxima[-1]], keepdims=0)
            )
        model.graph.node.append(helper.make_node("Max", maxima, [f"{name}_max"]))
        model.graph.node.append(helper.make_node("Cast", [f"{name}_max"], [name], to=onnx.TensorProto.FLOAT))
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ()))
        specs.append(TensorSpec(name, "float32", ()))
    watched = replace(graph, name=f"{graph.name}-watched", outputs=(*graph.outputs, *specs))
    return _write(model, watched, folder)


def quantize_convs(graph: StageGraph, ranges: Ranges, folder: Path) -> StageGraph:
    """The same graph in `folder` with its convolutions of `LEAST_CHANNELS` channels and more in INT8.

    Raises OSError; ConfigError for a convolution whose range is not known or no number, and if the packages for it
    are not installed.
    """
    require_exporter()
    import onnx

    model = onnx.load(graph.path)
    surgery = _Surgery(model)
    for conv, weight in _convs(model):
        known = 0 <= ranges.get(weight.name, -1.0) < np.inf
        require(known, f"{graph.name}: the range of what {weight.name} reads is not known; watch it before")
        surgery.quantize(conv, weight, ranges[weight.name])
    surgery.finish()
    made = replace(graph, name=int8_name(graph.name), recipe=int8_recipe(graph.recipe))
    return _write(model, made, folder)


class _Surgery:
    """Collects what is put before the nodes of a graph, and what its initializers become."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._onnx: Any = onnx
        self._graph = model.graph
        self._nodes: list[onnx.NodeProto] = []
        self._quantized: dict[str, str] = {}
        self._zero = "int8_zero"

    def quantize(self, conv: onnx.NodeProto, weight: onnx.TensorProto, reach: float) -> None:
        """Round what a convolution reads, and its weight."""
        dtype = self._onnx.numpy_helper.to_array(weight).dtype
        scale = self._keep(f"{conv.name}_scale", np.array(max(reach, LEAST) / STEPS, dtype))
        rounded, read = f"{conv.name}_int8", f"{conv.name}_read"
        self._add("QuantizeLinear", [conv.input[0], scale, self._zero], rounded)
        self._add("DequantizeLinear", [rounded, scale, self._zero], read)
        conv.input[0] = read
        conv.input[1] = self._rounded(weight, OUTPUTS[conv.op_type])

    def finish(self) -> None:
        """Put all of it in its place: nodes that read others come after them."""
        self._keep(self._zero, np.array(0, np.int8))
        kept = [tensor for tensor in self._graph.initializer if tensor.name not in self._quantized]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        before = {node.output[0]: node for node in self._nodes}
        nodes = list(self._graph.node)
        del self._graph.node[:]
        for node in nodes:
            for name in node.input:
                self._graph.node.extend(_needed(name, before))
            self._graph.node.append(node)

    def _rounded(self, weight: onnx.TensorProto, axis: int) -> str:
        if weight.name not in self._quantized:
            values = self._onnx.numpy_helper.to_array(weight)
            wide = values.astype(np.float32)
            others = tuple(each for each in range(wide.ndim) if each != axis)
            scales = np.maximum(np.abs(wide).max(axis=others, keepdims=True), LEAST) / STEPS
            stored = np.clip(np.rint(wide / scales), -STEPS, STEPS).astype(np.int8)
            names = [
                self._keep(f"{weight.name}_int8", stored),
                self._keep(f"{weight.name}_scale", scales.reshape(-1).astype(values.dtype)),
            ]
            self._add("DequantizeLinear", names, f"{weight.name}_read", axis=axis)
            self._quantized[weight.name] = f"{weight.name}_read"
        return self._quantized[weight.name]

    def _keep(self, name: str, values: np.ndarray) -> str:
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: int) -> None:
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], **attributes))


def _needed(name: str, before: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The new nodes that make a tensor, in their order; each is placed once."""
    node = before.pop(name, None)
    if node is None:
        return []
    return [*(earlier for read in node.input for earlier in _needed(read, before)), node]


def _convs(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Convolutions with channels enough, and their weights."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [
        (node, weights[node.input[1]])
        for node in model.graph.node if node.op_type in OUTPUTS and node.input[1] in weights
    ]  # fmt: skip
    return [(node, weight) for node, weight in found if min(weight.dims[:2]) >= LEAST_CHANNELS]


def _inputs(model: onnx.ModelProto) -> dict[str, list[str]]:
    """What the convolutions of each weight read."""
    found = dict[str, list[str]]()
    for conv, weight in _convs(model):
        found.setdefault(weight.name, []).append(conv.input[0])
    return found


def _write(model: onnx.ModelProto, graph: StageGraph, folder: Path) -> StageGraph:
    import onnx

    with whole_folder(folder) as place:
        onnx.save(model, place / GRAPH_FILE, save_as_external_data=True, location=f"{GRAPH_FILE}.data")
        replace(graph, folder=place).save()
    return StageGraph.load(folder)

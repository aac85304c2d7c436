"""Small graphs of stages, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.export.graph import StageGraph, TensorSpec

SHAPE = (1, 4, 8, 8)


def tiny_graph(folder: Path, seed: int = 0, name: str = "decoder-steady-1", operator: str = "Relu") -> StageGraph:
    """A convolution in fp16 whose weights follow from `seed`, then `operator`; its state is what it was given."""
    folder.mkdir(parents=True)
    weight = np.random.default_rng(seed).normal(size=(4, 4, 3, 3)).astype(np.float16)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["latents", "weight"], ["made"], pads=[1, 1, 1, 1]),
            helper.make_node(operator, ["made"], ["frames"]),
            helper.make_node("Add", ["past", "made"], ["past_after"]),
        ],
        name,
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT16, SHAPE) for tensor in ("latents", "past")],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT16, SHAPE) for tensor in ("frames", "past_after")],
        [numpy_helper.from_array(weight, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    inputs, outputs = (
        tuple(TensorSpec(tensor, "float16", SHAPE) for tensor in names)
        for names in (("latents", "past"), ("frames", "past_after"))
    )
    stage = StageGraph(
        folder, name, "decoder", inputs, outputs, (("past", "past_after"),), 20, "fp16", f"weights {seed}"
    )
    onnx.save(made, stage.path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    stage.save()
    return stage


def attention_graph(folder: Path, tokens: int = 64, heads: int = 2, channels: int = 8) -> StageGraph:
    """ONNX's own attention in fp32, with heads so small that no kernel is made for them."""
    folder.mkdir(parents=True)
    shape = (1, heads, tokens, channels)
    graph = helper.make_graph(
        [helper.make_node("Attention", ["q", "k", "v"], ["attended"])],
        "text-64",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("q", "k", "v")],
        [helper.make_tensor_value_info("attended", TensorProto.FLOAT, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    inputs = tuple(TensorSpec(name, "float32", shape) for name in ("q", "k", "v"))
    outputs = (TensorSpec("attended", "float32", shape),)
    stage = StageGraph(folder, "text-64", "text", inputs, outputs, (), 23, "fp32", "none")
    onnx.save(made, stage.path)
    stage.save()
    return stage

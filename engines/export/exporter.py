"""From a network and example inputs to a graph's folder, by torch's exporter.

The packages that it takes are the extra `onnx`. Modules are exported as they are, on torch's own operators; what a
call remembers has to be among its inputs and outputs, since a write in place is lost without a word.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engines.errors import ConfigError
from engines.export.graph import GRAPH_FILE, Stage, StageGraph, TensorSpec

OPSET = 20
"""Attention is written as products and a softmax, which every runtime knows: operators of 23 on have one of their
own, for which a builder may have no kernel."""

PACKAGES = ("onnx", "onnxscript")


class GraphFacts(NamedTuple):
    """What `StageGraph` says of a graph besides its tensors."""

    name: str
    stage: Stage
    state: tuple[tuple[str, str], ...]
    recipe: str
    weights: str


def require_exporter() -> None:
    """Raise ConfigError if a package is not installed that exporting takes."""
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ConfigError(
            f"exporting a graph takes {' and '.join(missing)}, not installed here: pip install 'longtake[onnx]'"
        )


@torch.inference_mode(False)
@torch.no_grad()
def export_graph(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    facts: GraphFacts,
    folder: Path,
    opset: int = OPSET,
) -> StageGraph:
    """The graph of one call of `network`, written to `folder` whole or not at all; one that is there is replaced.

    Args:
        network: called with the inputs in their order; returns a tuple of tensors.
        inputs: of the shapes and dtypes that the graph is to have. Values do not matter.
        outputs: their names.
        facts: see there.
        folder: made if need be.
        opset: of the ONNX operators.

    Raises:
        ConfigError: the packages for it are not installed, or a shape or name does not agree.
        OSError: it cannot be written.

    """
    require_exporter()
    with _quiet():
        exported = torch.onnx.export(
            network.eval(), tuple(inputs.values()), dynamo=True, opset_version=opset, verbose=False,
            input_names=list(inputs), output_names=list(outputs),
        )  # fmt: skip
    assert exported is not None
    graph = exported.model.graph
    for node in graph.all_nodes():
        # The lines of code, and where they lie on this machine.
        node.metadata_props.clear()
    with whole_folder(folder) as place:
        exported.save(place / GRAPH_FILE, external_data=True)
        written = StageGraph(
            place, facts.name, facts.stage, tuple(map(_spec, graph.inputs)), tuple(map(_spec, graph.outputs)),
            facts.state, opset, facts.recipe, facts.weights,
        )  # fmt: skip
        written.save()
    return StageGraph.load(folder)


def _spec(value: Any) -> TensorSpec:
    """Of one of the exporter's values."""
    name = value.dtype.name.lower()
    return TensorSpec(value.name, {"float": "float32"}.get(name, name), tuple(value.shape))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that it does without, and of deprecated calls of its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Where to write what becomes `folder` at the end of the block; `folder` is as it was if that fails."""
    place = folder.with_name(f".{folder.name}.{os.getpid()}")
    place.mkdir(parents=True)
    try:
        yield place
        if folder.exists():
            shutil.rmtree(folder)
        place.rename(folder)
    except BaseException:
        shutil.rmtree(place)
        raise

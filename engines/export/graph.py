"""A stage of a model as an ONNX graph on disk, and what a runtime has to know of it.

A folder holds `graph.onnx`, its weights beside it, and `graph.json` with the rest. Shapes are fixed: a stage is
several graphs, one for each kind of call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from typing_extensions import override

from engines.config.validation import require
from engines.errors import ConfigError, PlanError

GRAPH_FILE = "graph.onnx"
FACTS_FILE = "graph.json"
VERSION = 1

EXPORT_VERSION = 1
"""Of how networks become graphs. Raise it where a graph of the same weights comes to compute something else: plans
that were made before are refused then."""

Stage = Literal["decoder", "text", "denoiser"]

STAGES: tuple[Stage, ...] = get_args(Stage)

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
}
"""By their names in `graph.json`."""


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output: contiguous, of a fixed shape, in one of `DTYPES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        require(self.dtype in DTYPES, f"{self.name} is in {self.dtype!r}; known: {', '.join(DTYPES)}")
        require(min(self.shape, default=1) >= 1, f"{self.name} {list(self.shape)}: no size may be below 1")

    @override
    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch knows it."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of such a tensor."""
        return torch.Size(self.shape).numel() * self.torch_dtype.itemsize


@dataclass(frozen=True)
class StageGraph:
    """One kind of call of a stage. Raises ConfigError for what does not agree.

    Args:
        folder: where its files are.
        name: such as `decoder-steady-3`: of a stream that goes on, over 3 latent frames.
        stage: what it computes.
        inputs: in the order of the graph.
        outputs: in the order of the graph.
        state: pairs of an input and the output that takes its place in a stream's next call. A graph that begins
            streams has no such inputs; its outputs are called as those of the graph that goes on with them.
        opset: of the ONNX operators.
        recipe: which numbers compute what, such as "fp16, norms in fp32".
        weights: hash of the network's, see `engines.loading.fingerprint.weights_hash`.

    """

    folder: Path
    name: str
    stage: Stage
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[tuple[str, str], ...]
    opset: int
    recipe: str
    weights: str

    def __post_init__(self) -> None:
        require(self.stage in STAGES, f"stage {self.stage!r} is not known; known: {', '.join(STAGES)}")
        names = [spec.name for spec in (*self.inputs, *self.outputs)]
        require(len(set(names)) == len(names), f"{self.name} has two tensors of one name: {', '.join(names)}")
        for before, after in self.state:
            given, taken = _named(self.inputs, before), _named(self.outputs, after)
            problem = f"{self.name}: {after} {taken} cannot take the place of {before} {given}"
            require((given.dtype, given.shape) == (taken.dtype, taken.shape), problem)

    @property
    def path(self) -> Path:
        """The graph's file; weights that do not fit into it lie beside it."""
        return self.folder / GRAPH_FILE

    def input(self, name: str) -> TensorSpec:
        """Raises ConfigError if there is none of this name."""
        return _named(self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """Raises ConfigError if there is none of this name."""
        return _named(self.outputs, name)

    def save(self) -> None:
        """Write `graph.json` into the folder."""
        facts = {"version": VERSION, **asdict(self)}
        del facts["folder"]
        (self.folder / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The graph in `folder`. Raises PlanError, which names the file, if it is not there or damaged."""
        graph = cls.read(folder)
        if not graph.path.is_file():
            raise PlanError(f"{graph.path} is not there, export it again")
        return graph

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What is said of it in `folder`, where the graph itself need not be any more. Raises as `load`."""
        path = folder / FACTS_FILE
        try:
            return cls._parse(folder, json.loads(path.read_text()))
        except OSError as error:
            raise PlanError(f"there is no graph in {folder}: {path.name} {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise PlanError(f"{path} is damaged, export it again: {error!r}") from error

    @classmethod
    def _parse(cls, folder: Path, facts: dict[str, Any]) -> Self:
        if facts.pop("version") != VERSION:
            raise ValueError("another version of Longtake wrote it")
        inputs, outputs = (_specs(facts.pop(key)) for key in ("inputs", "outputs"))
        state = tuple((before, after) for before, after in facts.pop("state"))
        return cls(folder, inputs=inputs, outputs=outputs, state=state, **facts)


def _specs(found: Sequence[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in found)


def _named(specs: Sequence[TensorSpec], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ConfigError(f"no tensor {name!r}; there are {', '.join(spec.name for spec in specs)}")

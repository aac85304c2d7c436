"""What a plan was made of, by what, for which cards and under which terms: the file beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from engines.errors import PlanError
from engines.export.graph import EXPORT_VERSION, FACTS_FILE, Stage, StageGraph
from engines.export.quantized_convs import PictureLoss
from engines.plans.builder import Library, PlanTarget

MANIFEST = "manifest.json"

VERSION = 2

PictureSize = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class PlanKey:
    """All that a plan's bytes depend on, so that a plan with the same key need not be built again.

    Args:
        name: of the graph, such as `decoder-steady-3`.
        stage: that the graph belongs to.
        size: of the pictures; None for a stage that knows none.
        weights: hash of the network's, see `engines.loading.fingerprint.weights_hash`.
        graph: SHA-256 of the graph's file.
        data: SHA-256 of the files beside it, which hold its weights.
        recipe: which numbers compute what.
        export: how the network became a graph, see `EXPORT_VERSION`; 0 of plans that do not say so.
        inputs: of the graph, with dtypes and shapes.
        library: name of what builds it.
        library_version: of that.
        capabilities: of the cards it is for.
        device: name of the one kind of card it was timed on; empty where none was.

    """

    name: str
    stage: Stage
    size: PictureSize | None
    weights: str
    graph: str
    data: str
    recipe: str
    export: int
    inputs: tuple[str, ...]
    library: str
    library_version: str
    capabilities: tuple[str, ...]
    device: str

    @classmethod
    def of(cls, graph: StageGraph, size: PictureSize | None, library: Library, target: PlanTarget) -> Self:
        """That of a plan which is yet to be built. Reads the graph's files."""
        beside = sorted(file for file in graph.folder.iterdir() if file.name not in (graph.path.name, FACTS_FILE))
        return cls(
            name=graph.name,
            stage=graph.stage,
            size=size,
            weights=graph.weights,
            graph=sha256_of(graph.path),
            data=hashlib.sha256("".join(sha256_of(file) for file in beside).encode()).hexdigest(),
            recipe=graph.recipe,
            export=EXPORT_VERSION,
            inputs=tuple(f"{spec.name} {spec}" for spec in graph.inputs),
            library=library.name,
            library_version=library.version,
            capabilities=target.capabilities,
            device=target.device,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlanManifest:
    """What is known of a plan.

    `sha256` and `bytes` are the plan's, `facts_sha256` is of the file beside it that says what its graph takes and
    returns; `layers`, `activation_bytes` and `seconds` are as `BuiltPlan` has them. `weights_licence` has the
    terms of the weights in it, `library_licence` those of the library, whose code it holds too. `loss` is what
    INT8 convolutions cost, where there are any.
    """

    key: PlanKey
    sha256: str
    facts_sha256: str
    bytes: int
    layers: int
    activation_bytes: int | None
    seconds: float
    weights_licence: str
    library_licence: str
    longtake: str
    made: str
    loss: PictureLoss | None = None

    def write(self, folder: Path) -> None:
        """As JSON in `folder`. Raises OSError."""
        document = {"version": VERSION, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That in `folder`. Raises PlanError if it is not there, or damaged."""
        path = folder / MANIFEST
        try:
            return cls._parse(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise PlanError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{path} is damaged: {error!r}") from error

    @classmethod
    def _parse(cls, document: dict[str, Any]) -> Self:
        if document.pop("version") != VERSION:
            raise ValueError("another version of Longtake wrote it")
        key = {"export": 0} | document.pop("key")
        for name in ("inputs", "capabilities"):
            key[name] = tuple(key[name])
        key["size"] = None if key["size"] is None else (key["size"][0], key["size"][1])
        if (loss := document.pop("loss", None)) is not None:
            loss = PictureLoss(**loss)
        return cls(key=PlanKey(**key), loss=loss, **document)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

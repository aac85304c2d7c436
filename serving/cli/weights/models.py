"""What `longtake models` shows: the known models, whether they are here, what they need, under which terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from engines.cache.kv_cache import KVFormat
from engines.config.model import ModelConfig
from engines.config.presets import PRESETS
from engines.config.quantization import QuantizationConfig
from engines.errors import EngineError
from engines.loading.footprint import memory_needed
from engines.loading.memory_plan import plan_memory
from engines.runner.selection import WIDEST_TOKEN
from serving.errors import DownloadError
from serving.weights.catalog import CATALOG, CatalogEntry
from serving.weights.loader import POCKET, configured
from serving.weights.manifest import Manifest, read_manifest, verify
from serving.weights.quantized_model import QuantizedModel, model_config, quantized_models

HEADINGS = ("MODEL", "HERE", "MEMORY", "WHAT IT IS")

Here = Literal["built in", "yes", "no", "incomplete", "damaged"]


@dataclass(frozen=True)
class Source:
    """A repository that a model's files come from; `revision` is the commit that is here, `licence` its terms."""

    repo: str
    revision: str | None
    licence: str


@dataclass(frozen=True)
class ModelRow:
    """A known model. `memory_bytes` counts its networks and one session, not what a pass takes on top; None where
    it cannot be known.

    `work` says how many steps and passes a block takes, and whether the model was made for streams without end.
    """

    model: str
    summary: str
    work: str
    here: Here
    memory_bytes: int | None
    sources: tuple[Source, ...]


def model_rows(folder: Path, dtype: torch.dtype = torch.bfloat16) -> list[ModelRow]:
    """A row for every preset, with what `folder` has of it, and for every quantized model in `folder`."""
    known = [_row(config, CATALOG.get(name), folder / name, dtype) for name, config in PRESETS.items()]
    return known + [_quantized_row(made, dtype) for made in quantized_models(folder)]


def _quantized_row(made: Path, dtype: torch.dtype) -> ModelRow:
    try:
        model = QuantizedModel.read(made)
        config = model.config
    except EngineError as error:
        return ModelRow(made.name, f"quantized; {error}", "", "damaged", None, ())
    source = Source(f"longtake quantize {model.base}", None, model.header.licence)
    loras = f"; LoRAs merged: {', '.join(model.header.loras)}" if model.header.loras else ""
    summary = f"{model.base} in {model.header.recipe}{loras}"
    return ModelRow(made.name, summary, _work(config), "yes", memory_needed(config, dtype), (source,))


def _row(config: ModelConfig, entry: CatalogEntry | None, folder: Path, dtype: torch.dtype) -> ModelRow:
    memory = memory_needed(config, dtype)
    if entry is None:
        what = "ships with Longtake, the default" if config.name == POCKET else "random weights, for tests"
        return ModelRow(config.name, what, _work(config), "built in", memory, ())
    declared = tuple(Source(repo.id, None, repo.license) for repo in entry.repos)
    try:
        manifest = read_manifest(folder)
    except DownloadError:
        return ModelRow(config.name, entry.summary, _work(config), "damaged", memory, declared)
    if manifest is None:
        here: Here = "incomplete" if folder.exists() else "no"
        return ModelRow(config.name, entry.summary, _work(config), here, memory, declared)
    recorded = tuple(Source(repo.id, repo.revision, repo.licence) for repo in manifest.repos)
    here = "yes" if _is_whole(entry, folder, manifest) else "damaged"
    return ModelRow(config.name, entry.summary, _work(config), here, memory, recorded)


def _is_whole(entry: CatalogEntry, folder: Path, manifest: Manifest) -> bool:
    recorded = {file.path for file in manifest.files}
    return not verify(folder) and recorded.issuperset(file.local for file in entry.files())


def memory_of(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """What a server of a model takes of a graphics card with one session: as it is, and on a small card.

    There is no second plan for a model that is too wide for the kernels that such a card needs.
    """
    config = model_config(name, folder)
    plans = {f"{name}, everything on the card": plan_memory(config, dtype)}
    if config.name in CATALOG and config.transformer.dim <= WIDEST_TOKEN:
        recipe = config.transformer.quantization or QuantizationConfig("int8")
        quantized = replace(config, transformer=replace(config.transformer, quantization=recipe))
        small = configured(quantized, "tiny", int8_text=True)
        plans["--preset 24gb or 16gb"] = plan_memory(small, dtype, KVFormat(True, True), text_here=False)
    return [line for what, plan in plans.items() for line in (f"{what}:", *plan.lines(1))]


def models_table(rows: list[ModelRow]) -> list[str]:
    """Lines with the rows in aligned columns; below each model where it comes from, under which licence."""
    heads = [(row.model, row.here, _size(row.memory_bytes)) for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADINGS[:-1], *heads, strict=True)]
    lines = [_line(HEADINGS[:-1], widths, HEADINGS[-1])]
    for head, row in zip(heads, rows, strict=True):
        lines.append(_line(head, widths, row.summary))
        below = [*filter(None, [row.work]), *(_origin(source) for source in row.sources)]
        lines += [_line(("", "", ""), widths, text) for text in below]
    return lines


def _line(head: tuple[str, ...], widths: list[int], text: str) -> str:
    return "  ".join([cell.ljust(width) for cell, width in zip(head, widths, strict=True)] + [text])


def _work(config: ModelConfig) -> str:
    stream = config.stream
    first = "" if stream.first_steps is None else f", {len(stream.first_steps)} in the first block"
    frames = "a latent frame" if stream.block_frames == 1 else f"{stream.block_frames} latent frames"
    passes = f"{stream.passes} passes" if stream.passes > 1 else "1 pass"
    made = "made for endless streams" if config.endless else "not made for endless streams"
    return f"{len(stream.steps)} steps{first}; {passes} for {frames}; {made}".replace("1 steps", "1 step", 1)


def _origin(source: Source) -> str:
    revision = "" if source.revision is None else f"@{source.revision[:8]}"
    return f"{source.repo}{revision}: {source.licence}"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

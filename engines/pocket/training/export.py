"""The trained pocket model as files that ship with Longtake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engines.errors import ConfigError
from engines.pocket.model_files import WEIGHTS, model_files, revision
from engines.pocket.training.recipe import Recipe

POINTS = 200
"""Of each loss curve that are kept."""


def publish(trained: Path, folder: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Write what the stages in `trained` have made as a pocket model: fp16 weights, settings, loss curves.

    Networks of the published model in `start` stand in for those that were not trained, and the story of its
    training is kept beside. Raises ConfigError if a network is in neither.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, begun = model_files(folder), None if start is None else model_files(start)
    _put(trained, recipe.autoencoder, "", files.codec, begun.codec if begun else None)
    _put(trained, ["text"], "encoder.", files.text_encoder, begun.text_encoder if begun else None)
    _put(trained, recipe.transformer_stages, "", files.transformer, begun.transformer if begun else None)
    if folder != WEIGHTS:
        shutil.copyfile(WEIGHTS / "tokenizer.json", folder / "tokenizer.json")
    stages = {stage: _stage(trained, stage) for stage in _done(trained, recipe.stages)}
    report: dict[str, Any] = {"torch": torch.__version__, "stages": stages}
    if start:
        report["from"] = {"revision": revision(start), **json.loads((start / "training.json").read_text())}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def _put(trained: Path, stages: Iterable[str], prefix: str, file: Path, begun: Path | None) -> None:
    """Write a network as the last of its stages left it, or copy it as it was at the beginning."""
    if done := _done(trained, stages):
        _write(trained / f"{done[-1]}-average.safetensors", prefix, file)
    elif begun:
        shutil.copyfile(begun, file)
    else:
        raise ConfigError(f"{file.name} cannot be written: none of its stages has been run in {trained}")


def _write(stage: Path, prefix: str, file: Path) -> None:
    """The part of a stage's weights whose names begin with `prefix`, in fp16."""
    tensors = load_file(stage)
    kept = {name.removeprefix(prefix): t.half() for name, t in tensors.items() if name.startswith(prefix)}
    save_file(kept, file)


def _done(trained: Path, stages: Iterable[str]) -> list[str]:
    return [stage for stage in stages if (trained / f"{stage}.json").exists()]


def _stage(trained: Path, stage: str) -> dict[str, Any]:
    """Settings, progress and a thinned curve of each loss."""
    state = json.loads((trained / f"{stage}.json").read_text())
    lines = [json.loads(line) for line in (trained / f"{stage}.losses.jsonl").read_text().splitlines()]
    thinned = lines[:: -(-len(lines) // POINTS)] if lines else []
    curves = {name: [_rounded(line[name]) for line in thinned] for name in (thinned[0] if thinned else {})}
    return {**state, "curves": curves}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")

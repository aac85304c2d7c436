"""The trained pocket model as files that ship with Longtake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engines.pocket.model_files import WEIGHTS, model_files, revision

STAGES = ("autoencoder", "text", "first-blocks", "flow", "self-forcing")

POINTS = 200
"""Of each loss curve that are kept."""


def publish(trained: Path, folder: Path, start: Path | None = None) -> None:
    """Write what the stages in `trained` have made as a pocket model: fp16 weights, settings, loss curves.

    Networks and curves of the published model in `start`, if it was trained on from one, are kept beside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = model_files(folder)
    begun = model_files(start) if start else None
    last = [stage for stage in STAGES if (trained / f"{stage}.json").exists()][-1]
    _write(trained / f"{last}-average.safetensors", "", files.transformer)
    if begun:
        shutil.copyfile(begun.codec, files.codec)
        shutil.copyfile(begun.text_encoder, files.text_encoder)
    else:
        _write(trained / "autoencoder-average.safetensors", "", files.codec)
        _write(trained / "text-average.safetensors", "encoder.", files.text_encoder)
    if folder != WEIGHTS:
        shutil.copyfile(WEIGHTS / "tokenizer.json", folder / "tokenizer.json")
    stages = {stage: _stage(trained, stage) for stage in _done(trained)}
    report: dict[str, Any] = {"torch": torch.__version__, "stages": stages}
    if start:
        report["from"] = {"revision": revision(start), **json.loads((start / "training.json").read_text())}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def _write(stage: Path, prefix: str, file: Path) -> None:
    """The part of a stage's weights whose names begin with `prefix`, in fp16."""
    tensors = load_file(stage)
    kept = {name.removeprefix(prefix): t.half() for name, t in tensors.items() if name.startswith(prefix)}
    save_file(kept, file)


def _done(trained: Path) -> list[str]:
    return [stage for stage in STAGES if (trained / f"{stage}.json").exists()]


def _stage(trained: Path, stage: str) -> dict[str, Any]:
    """Settings, progress and a thinned curve of each loss."""
    state = json.loads((trained / f"{stage}.json").read_text())
    lines = [json.loads(line) for line in (trained / f"{stage}.losses.jsonl").read_text().splitlines()]
    thinned = lines[:: -(-len(lines) // POINTS)] if lines else []
    curves = {name: [_rounded(line[name]) for line in thinned] for name in (thinned[0] if thinned else {})}
    return {**state, "curves": curves}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")

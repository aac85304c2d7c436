"""The trained pocket model as files that ship with Longtake."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engines.weights import ModelFiles

WEIGHTS = Path(__file__).parent / "weights"
"""Where the weights that ship with Longtake are."""

STAGES = ("autoencoder", "text", "first-blocks", "flow", "self-forcing")

POINTS = 200
"""Of each loss curve that are kept."""


def model_files(folder: Path = WEIGHTS) -> ModelFiles:
    """The files of a published pocket model."""
    return ModelFiles(
        transformer=folder / "transformer.safetensors",
        codec=folder / "codec.safetensors",
        text_encoder=folder / "text_encoder.safetensors",
        tokenizer=folder,
    )


def revision(folder: Path = WEIGHTS) -> str:
    """A short name of the weights in `folder`, which changes with every bit of them."""
    digest = hashlib.sha256()
    files = model_files(folder)
    for path in (files.transformer, files.codec, files.text_encoder, folder / "tokenizer.json"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def publish(trained: Path, folder: Path) -> None:
    """Write what the stages in `trained` have made as a pocket model: fp16 weights, settings, loss curves."""
    folder.mkdir(parents=True, exist_ok=True)
    files = model_files(folder)
    last = [stage for stage in STAGES if (trained / f"{stage}.json").exists()][-1]
    for stage, prefix, file in (
        (last, "", files.transformer), ("autoencoder", "", files.codec), ("text", "encoder.", files.text_encoder)
    ):  # fmt: skip
        tensors = load_file(trained / f"{stage}-average.safetensors")
        kept = {name.removeprefix(prefix): t.half() for name, t in tensors.items() if name.startswith(prefix)}
        save_file(kept, file)
    if folder != WEIGHTS:
        shutil.copyfile(WEIGHTS / "tokenizer.json", folder / "tokenizer.json")
    report = {"torch": torch.__version__, "stages": {stage: _stage(trained, stage) for stage in _done(trained)}}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")


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

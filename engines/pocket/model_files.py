"""The files of the pocket model that ship with Longtake: all that serving needs of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engines.loading.loader import ModelFiles

WEIGHTS = Path(__file__).parent / "weights"
"""Where the weights that ship with Longtake are."""


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

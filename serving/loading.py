"""A model by its name: from downloaded weights, or built in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1, preset
from engines.loading.loader import LoadedModel, ModelFiles, load_model
from engines.loading.model import Model
from engines.pocket.model_files import model_files, revision
from engines.text.prompt_encoder import PromptEncoder
from engines.text.tokenizer import ByteTokenizer
from serving.catalog import CATALOG, CatalogEntry, Role
from serving.errors import ModelError
from serving.manifest import read_manifest, verify

CodecName = Literal["own", "tiny"]

POCKET = "pocket"
"""The model whose weights ship with Longtake."""

DEFAULT_MODEL = POCKET


RANDOM_SEED = 0
"""Of the weights of a model that has no others."""

REMEMBERED_PROMPTS = 64


@dataclass(frozen=True)
class Origin:
    """Where weights come from: a repository, the commit of it that is here, and the name of its licence."""

    repo: str
    revision: str
    licence: str


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to be used, and where it comes from."""

    model: Model
    prompts: PromptEncoder
    origins: tuple[Origin, ...]


def open_model(
    name: str,
    models: Path,
    device: torch.device,
    dtype: torch.dtype,
    codec: CodecName = "own",
    text_device: torch.device | None = None,
) -> OpenedModel:
    """Load the model called `name`, from its subfolder of `models` if it has published weights.

    `codec` "tiny" takes the tiny autoencoder instead of the model's own. Raises ConfigError if there is no such
    model, ModelError if its weights are not here or not whole, and WeightsError if they do not fit.
    """
    config = preset(name)
    if entry := CATALOG.get(name):
        config = config if codec == "own" else replace(config, vae=TAEW2_1)
        role = Role.CODEC if codec == "own" else Role.TINY_CODEC
        return _open_published(entry, config, role, models / name, device, dtype, text_device)
    if codec == "tiny":
        raise ModelError(f"{name} has no tiny codec beside its own; leave --codec out")
    if name == POCKET:
        loaded = load_model(config, model_files(), device, dtype, text_device)
        return _opened(loaded, (Origin("longtake pocket", revision(), "Apache-2.0"),))
    model = Model.random(config, RANDOM_SEED, device, dtype)
    prompts = PromptEncoder(ByteTokenizer(config.text_encoder.text_len), model.text_encoder, REMEMBERED_PROMPTS)
    return OpenedModel(model, prompts, (Origin("random weights", f"seed {RANDOM_SEED}", "Apache-2.0"),))


def _open_published(
    entry: CatalogEntry,
    config: ModelConfig,
    codec: Role,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    text_device: torch.device | None,
) -> OpenedModel:
    manifest = read_manifest(folder)
    if manifest is None:
        raise ModelError(f"{entry.model} is not in {folder}; run `longtake download {entry.model}`")
    if faults := verify(folder):
        raise ModelError(
            f"{folder / faults[0].path}: {faults[0].reason}; run `longtake download {entry.model}` again"
        )
    files = _files(entry, folder, codec)
    if not files.codec.is_file():
        raise ModelError(f"{files.codec} is not here; run `longtake download {entry.model} --with-tiny-codec`")
    origins = tuple(Origin(repo.id, repo.revision, repo.licence) for repo in manifest.repos)
    return _opened(load_model(config, files, device, dtype, text_device), origins)


def _opened(loaded: LoadedModel, origins: tuple[Origin, ...]) -> OpenedModel:
    prompts = PromptEncoder(loaded.tokenizer, loaded.model.text_encoder, REMEMBERED_PROMPTS)
    return OpenedModel(loaded.model, prompts, origins)


def _files(entry: CatalogEntry, folder: Path, codec: Role) -> ModelFiles:
    def one(role: Role) -> Path:
        return entry.locate(folder, role)[0]

    loras = entry.locate(folder, Role.LORA)
    return ModelFiles(
        transformer=one(Role.TRANSFORMER),
        codec=one(codec),
        text_encoder=one(Role.TEXT_ENCODER),
        tokenizer=one(Role.TOKENIZER).parent,
        lora=loras[0] if loras else None,
        entry=entry.entry,
    )

"""A model by its name: from downloaded weights, or built in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1
from engines.errors import ConfigError
from engines.loading.loader import ModelFiles, load_networks
from engines.loading.lora import LoRAFile, require_loras_fit
from engines.loading.model import NETWORKS, Model, Network
from engines.loading.quantized_file import require_no_loras
from engines.pocket.model_files import model_files, revision
from engines.text.prompt_encoder import PromptEncoder
from engines.text.tokenizer import ByteTokenizer, PromptTokenizer, Tokenizer
from serving.errors import ModelError
from serving.weights.catalog import CATALOG, CatalogEntry, Role
from serving.weights.manifest import read_manifest, verify
from serving.weights.quantized_model import find_quantized, model_config

CodecName = Literal["own", "tiny"]

POCKET = "pocket"
"""The model whose weights ship with Longtake."""

DEFAULT_MODEL = POCKET


RANDOM_SEED = 0
"""Of the weights of a model that has no others."""

REMEMBERED_PROMPTS = 64

INT8_TEXT = {"text_encoder": "int8"}
"""Said beside the fingerprints of a model's networks where its text encoder's weights have been rounded."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from: a repository, the commit of it that is here, and the name of its licence."""

    repo: str
    revision: str
    licence: str


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to be used, and where it comes from. Without its text encoder it has no `prompts`."""

    model: Model
    origins: tuple[Origin, ...]
    _prompts: PromptEncoder | None

    @property
    def prompts(self) -> PromptEncoder:
        """From texts to prompts; ConfigError where the text encoder has not been loaded."""
        if self._prompts is None:
            raise ConfigError("the text encoder has not been loaded in this process")
        return self._prompts


def open_model(
    name: str,
    models: Path,
    device: torch.device,
    dtype: torch.dtype,
    codec: CodecName = "own",
    text_device: torch.device | None = None,
    networks: Collection[Network] = NETWORKS,
    loras: Sequence[LoRAFile] = (),
    *,
    int8_text: bool = False,
) -> OpenedModel:
    """Load `networks` of the model called `name`, from its subfolder of `models` if it has published weights.

    `name` may be that of a quantized model, or its folder. `loras` are merged into its transformer.

    `codec` "tiny" takes the tiny autoencoder instead of the model's own; with `int8_text` the weights of the text
    encoder are rounded to 8 bits as they are read. Raises ConfigError if there is no such model, ModelError if its
    weights are not here or not whole, and WeightsError if they do not fit.
    """
    config = model_config(name, models)
    located = _locate(name, models, codec, networks)
    if located is None:
        model = Model.random(config, RANDOM_SEED, device, dtype, networks, loras)
        origins = (Origin("random weights", f"seed {RANDOM_SEED}", "Apache-2.0"),)
        return OpenedModel(model, origins, _prompts(model, ByteTokenizer))
    files = replace(located.files, loras=tuple(loras))
    config = configured(config, codec, int8_text=int8_text)
    model = load_networks(config, files, device, dtype, text_device, networks)
    return OpenedModel(model, located.origins, _prompts(model, partial(Tokenizer.from_folder, files.tokenizer)))


def configured(config: ModelConfig, codec: CodecName, *, int8_text: bool) -> ModelConfig:
    """A model with the codec that is asked for, and its text encoder's weights as they are or in INT8."""
    config = replace(config, text_encoder=replace(config.text_encoder, int8_weights=int8_text))
    if codec != "tiny":
        return config
    # Pictures to be restyled are encoded by the model's own: a tiny encoder's latents are others.
    return replace(config, vae=TAEW2_1, encoder=None if config.video is None else config.vae)


def require_model(name: str, models: Path, codec: CodecName = "own", loras: Sequence[LoRAFile] = ()) -> None:
    """Raise what `open_model` would raise of a model whose weights are not here, without reading them.

    Raises WeightsError too where one of `loras` does not fit it.
    """
    config = model_config(name, models)
    _locate(name, models, codec, NETWORKS)
    if config.transformer.quantization is not None:
        require_no_loras(loras, name)
    require_loras_fit(loras, config.transformer)


class _Located(NamedTuple):
    """Where a model's files are, and where they come from."""

    files: ModelFiles
    origins: tuple[Origin, ...]


def _locate(name: str, models: Path, codec: CodecName, networks: Collection[Network]) -> _Located | None:
    """None for a model that has no files. Raises ModelError unless all are here and whole that are needed."""
    if quantized := find_quantized(name, models):
        base = _locate(quantized.base, models, codec, networks)
        if base is None:
            raise ModelError(f"{quantized.file} is made of {quantized.base}, which has no weights of its own")
        header = quantized.header
        origin = Origin(f"longtake quantize {header.recipe}", header.tensors, header.licence)
        return _Located(replace(base.files, transformer=quantized.file, lora=None), (*base.origins, origin))
    if entry := CATALOG.get(name):
        role = Role.CODEC if codec == "own" else Role.TINY_CODEC
        return _published(entry, models / name, role, networks)
    if codec == "tiny":
        raise ModelError(f"{name} has no tiny codec beside its own; leave --codec out")
    if name != POCKET:
        return None
    return _Located(model_files(), (Origin("longtake pocket", revision(), "Apache-2.0"),))


def _published(entry: CatalogEntry, folder: Path, codec: Role, networks: Collection[Network]) -> _Located:
    """Raises ModelError unless all files are whole that are needed."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ModelError(f"{entry.model} is not in {folder}; run `longtake download {entry.model}`")
    if faults := verify(folder):
        raise ModelError(
            f"{folder / faults[0].path}: {faults[0].reason}; run `longtake download {entry.model}` again"
        )
    files = _files(entry, folder, codec)
    if "codec" in networks and not files.codec.is_file():
        raise ModelError(f"{files.codec} is not here; run `longtake download {entry.model} --with-tiny-codec`")
    return _Located(files, tuple(Origin(repo.id, repo.revision, repo.licence) for repo in manifest.repos))


def _prompts(model: Model, make_tokenizer: Callable[[int], PromptTokenizer]) -> PromptEncoder | None:
    """If the text encoder has been loaded. `make_tokenizer` is given the most tokens of a text."""
    if not model.reads_text:
        return None
    tokenizer = make_tokenizer(model.config.text_encoder.text_len)
    return PromptEncoder(tokenizer, model.text_encoder, REMEMBERED_PROMPTS)


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
        encoder=one(Role.CODEC),
    )

"""The networks of a model, filled from the files that their authors published.

Each parameter is read from the mapped file, converted and put in its place before the next: loading holds the
model so far and one tensor more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.model import ModelConfig
from engines.config.networks import AutoencoderConfig, TAEHVConfig, TextEncoderConfig, TransformerConfig
from engines.errors import WeightsError
from engines.loading.checkpoint import Checkpoint, patch_as_convolution, without_wrappers
from engines.loading.lora import LoRA, LoRAFile, marks, merging
from engines.loading.model import NETWORKS, Autoencoder, Model, Network, build_vae
from engines.loading.quantized_file import QuantizedHeader, load_quantized, require_no_loras
from engines.loading.state_dict import fill, fill_rounded
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.vae.taehv import fit_time_grow
from engines.wan.transformer import CausalTransformer

GENERATOR_ENTRIES = ("generator", "generator_ema", "model", "state_dict")
"""Where training runs keep the transformer, LongLive's and StreamDiffusionV2's among them, in this order."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files lie, as published.

    `transformer` is Wan2.1's safetensors or one checkpoint that holds all of the transformer, such as
    LongLive's base or Self-Forcing's; `lora`, which belongs to it, and `loras` are merged into it. `codec` is of
    the kind that the model's config says, and so is `encoder`, where the config has one. `tokenizer` is a folder.
    `entry` names the transformer's state dict in a checkpoint that has several. Where the config's transformer is
    quantized, `transformer` is the file that `longtake quantize` made, and nothing can be merged into it.
    """

    transformer: Path
    codec: Path
    text_encoder: Path
    tokenizer: Path
    lora: Path | None = None
    loras: tuple[LoRAFile, ...] = ()
    entry: str | None = None
    encoder: Path | None = None


class LoadedModel(NamedTuple):
    """A model's networks, and the tokenizer of its text encoder."""

    model: Model
    tokenizer: Tokenizer


def load_model(
    config: ModelConfig,
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    text_device: torch.device | str | None = None,
) -> LoadedModel:
    """Load every network to `device`, the text encoder to `text_device` if that is another.

    Nothing but the returned model refers to the text encoder: whoever has encoded all prompts keeps the other
    two networks and lets the model go. Raises WeightsError for a file that cannot be read or does not fit, and
    ConfigError for the tokenizer.
    """
    tokenizer = Tokenizer.from_folder(files.tokenizer, config.text_encoder.text_len)
    return LoadedModel(load_networks(config, files, device, dtype, text_device), tokenizer)


def load_networks(
    config: ModelConfig,
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    text_device: torch.device | str | None = None,
    networks: Collection[Network] = NETWORKS,
) -> Model:
    """Load the `networks` that a process needs, as `load_model` does; files of others need not be there."""
    vae = encoder = transformer = text_encoder = None
    loras: Sequence[str] = ()
    if "codec" in networks:
        vae = load_vae(config.vae, files.codec, device, dtype)
        encoder = _load_encoder(config, files, device, dtype)
    if "transformer" in networks:
        transformer = _load_transformer(config, files, device, dtype)
        is_quantized = config.transformer.quantization is not None
        loras = QuantizedHeader.read(files.transformer).loras if is_quantized else marks(files.loras)
    if "text_encoder" in networks:
        text_encoder = load_text_encoder(config.text_encoder, files.text_encoder, text_device or device, dtype)
    return Model.of(config, transformer, vae, text_encoder, encoder, loras)


def _load_transformer(
    config: ModelConfig, files: ModelFiles, device: torch.device | str, dtype: torch.dtype
) -> CausalTransformer:
    if config.transformer.quantization is None:
        return load_transformer(
            config.transformer, files.transformer, files.lora, device, dtype, entry=files.entry, loras=files.loras
        )
    require_no_loras(files.loras, config.name)
    return load_quantized(config.transformer, files.transformer, device, dtype)


def _load_encoder(
    config: ModelConfig, files: ModelFiles, device: torch.device | str, dtype: torch.dtype
) -> Autoencoder | None:
    """The network that encodes, where it is another than the one that decodes."""
    if config.encoder is None:
        return None
    if files.encoder is None:
        raise WeightsError(f"{config.name} has an encoder of its own; name its file beside {files.codec}")
    return load_vae(config.encoder, files.encoder, device, dtype)


def load_transformer(
    config: TransformerConfig,
    path: Path,
    lora: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    entry: str | None = None,
    loras: Sequence[LoRAFile] = (),
) -> CausalTransformer:
    """The transformer in `path`, or in its state dict `entry`, with `lora` and `loras` merged into it in fp32."""
    with torch.device("meta"):
        network = CausalTransformer(config)
    entries = GENERATOR_ENTRIES if entry is None else (entry,)
    tensors = Checkpoint.open(path, entries).renamed(without_wrappers).adapted(patch_as_convolution)
    files = loras if lora is None else (LoRAFile(lora), *loras)
    adapt = merging([LoRA.open(file, network) for file in files], network)
    return fill(network, tensors, path, device, dtype, adapt)


def load_vae(config: AutoencoderConfig, path: Path, device: torch.device | str, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder in `path`, of the kind that `config` describes."""
    with torch.device("meta"):
        network = build_vae(config)
    tensors: Mapping[str, Tensor] = Checkpoint.open(path)
    if isinstance(config, TAEHVConfig):
        tensors = fit_time_grow(tensors, config)
    return fill(network, tensors, path, device, dtype)


def load_text_encoder(
    config: TextEncoderConfig, path: Path, device: torch.device | str, dtype: torch.dtype
) -> UMT5Encoder:
    """The text encoder in `path`; where the config says so, with weights that are rounded as they are read."""
    with torch.device("meta"):
        network = UMT5Encoder(config)
    if config.int8_weights:
        return fill_rounded(network, Checkpoint.open(path), path, device, dtype)
    return fill(network, Checkpoint.open(path), path, device, dtype)

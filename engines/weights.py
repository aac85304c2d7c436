"""The networks of a model, filled from the files that their authors published.

Each parameter is read from the mapped file, converted and put in its place before the next: loading holds the
model so far and one tensor more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from engines.checkpoint import Checkpoint, without_wrappers
from engines.config.model import ModelConfig
from engines.config.networks import TAEHVConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from engines.errors import WeightsError
from engines.model import Model, build_codec
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.wan.taehv import TAEHV, fit_time_grow
from engines.wan.transformer import CausalTransformer
from engines.wan.vae import WanVAE

GENERATOR_ENTRIES = ("generator", "generator_ema", "model")
"""Where LongLive's, Self-Forcing's and other training runs keep the transformer; in this order, as LongLive."""

LORA_ENTRIES = ("generator_lora",)

NAMED_IN_ERRORS = 3

NetworkT = TypeVar("NetworkT", bound=nn.Module)
Adapt = Callable[[str, Tensor], Tensor]
"""Makes a parameter of its name and of the tensor in the file."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files lie, as published.

    `transformer` is Wan2.1's safetensors or one checkpoint that holds all of the transformer, such as
    LongLive's base or Self-Forcing's; `lora` is merged into it. `codec` is Wan's VAE or a TAEHV, as the model's
    config says. `tokenizer` is a folder.
    """

    transformer: Path
    codec: Path
    text_encoder: Path
    tokenizer: Path
    lora: Path | None = None


class LoadedModel(NamedTuple):
    """A model's networks, and the tokenizer of its text encoder."""

    model: Model
    tokenizer: Tokenizer


class ModelBytes(NamedTuple):
    """What the parameters of each network take."""

    transformer: int
    codec: int
    text_encoder: int


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
    codec = load_codec(config.codec, files.codec, device, dtype)
    transformer = load_transformer(config.transformer, files.transformer, files.lora, device, dtype)
    text_encoder = load_text_encoder(config.text_encoder, files.text_encoder, text_device or device, dtype)
    return LoadedModel(Model(config, transformer, codec, text_encoder), tokenizer)


def load_transformer(
    config: TransformerConfig, path: Path, lora: Path | None, device: torch.device | str, dtype: torch.dtype
) -> CausalTransformer:
    """The transformer in `path`, with `lora` merged into it in fp32."""
    with torch.device("meta"):
        network = CausalTransformer(config)
    tensors = Checkpoint.open(path, GENERATOR_ENTRIES).renamed(without_wrappers)
    adapt = _as_it_is if lora is None else LoRA.open(lora, network).merge
    return fill(network, tensors, path, device, dtype, adapt)


def load_codec(
    config: VAEConfig | TAEHVConfig, path: Path, device: torch.device | str, dtype: torch.dtype
) -> WanVAE | TAEHV:
    """The autoencoder in `path`, of the kind that `config` describes."""
    with torch.device("meta"):
        network = build_codec(config)
    tensors: Mapping[str, Tensor] = Checkpoint.open(path)
    if isinstance(config, TAEHVConfig):
        tensors = fit_time_grow(tensors, config)
    return fill(network, tensors, path, device, dtype)


def load_text_encoder(
    config: TextEncoderConfig, path: Path, device: torch.device | str, dtype: torch.dtype
) -> UMT5Encoder:
    """The text encoder in `path`."""
    with torch.device("meta"):
        network = UMT5Encoder(config)
    return fill(network, Checkpoint.open(path), path, device, dtype)


def parameter_bytes(config: ModelConfig, dtype: torch.dtype) -> ModelBytes:
    """The memory that a model's parameters need in `dtype`, network by network."""
    with torch.device("meta"):
        networks = (
            CausalTransformer(config.transformer), build_codec(config.codec), UMT5Encoder(config.text_encoder)
        )  # fmt: skip
    return ModelBytes(*(sum(p.numel() for p in network.parameters()) * dtype.itemsize for network in networks))


@dataclass(frozen=True)
class LoRA:
    """A low-rank update of every linear layer in a transformer's blocks (Hu et al. 2021), as PEFT names it.

    The scale, alpha / rank, is 1: LongLive's is 256 / 256, and the file does not say. `scratch` has room for
    the largest of the layers: memory taken and given back layer by layer would leave holes.
    """

    tensors: Checkpoint
    scratch: Tensor

    @classmethod
    def open(cls, path: Path, transformer: CausalTransformer) -> Self:
        """Map the file; WeightsError unless it has both factors, of one rank, for exactly these layers."""
        tensors = Checkpoint.open(path, LORA_ENTRIES).renamed(lora_name)
        ranks = [t.shape[0] for name, t in tensors.items() if name.endswith(".lora_A.weight") and t.ndim == 2]
        rank = statistics.mode(ranks) if ranks else 0
        expected: dict[str, Sequence[int]] = {}
        layers = _adapted_layers(transformer)
        for name, layer in layers.items():
            expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
        _require_fit(tensors, expected, f"{path}, a LoRA of rank {rank}, does not fit CausalTransformer")
        return cls(tensors, torch.empty(max(layer.weight.numel() for layer in layers.values())))

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """W + B A in fp32, valid until the next call, if the parameter `name` is adapted; else W as it is."""
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" not in self.tensors:
            return weight
        a, b = self.tensors[f"{layer}.lora_A.weight"], self.tensors[f"{layer}.lora_B.weight"]
        merged = self.scratch[: weight.numel()].view(weight.shape)
        return merged.copy_(weight).addmm_(b.float(), a.float())


def _adapted_layers(transformer: CausalTransformer) -> dict[str, nn.Linear]:
    named = transformer.blocks.named_modules(prefix="blocks")
    return {name: layer for name, layer in named if isinstance(layer, nn.Linear)}


def lora_name(name: str) -> str:
    """`name` without PEFT's wrapper and adapter."""
    return without_wrappers(name.removeprefix("base_model.model.")).replace(".default.", ".")


def _as_it_is(_: str, tensor: Tensor) -> Tensor:
    return tensor


def fill(
    network: NetworkT,
    tensors: Mapping[str, Tensor],
    source: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    adapt: Adapt = _as_it_is,
) -> NetworkT:
    """Give `network`, built on `meta`, its parameters on `device` in `dtype`, for inference.

    Raises WeightsError before anything is read unless names and shapes are exactly the network's; `source` is
    named in it.
    """
    expected = {name: parameter.shape for name, parameter in network.state_dict().items()}
    _require_fit(tensors, expected, f"{source} does not fit {type(network).__name__}")
    copies = {
        name: torch.empty(shape, device=device, dtype=dtype).copy_(adapt(name, tensors[name]))
        for name, shape in expected.items()
    }
    network.load_state_dict(copies, assign=True)
    # Constants that no checkpoint holds have stayed where they were made.
    return network.to(device, dtype).eval().requires_grad_(False)


def _require_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], complaint: str) -> None:
    """Raise WeightsError, `complaint` and what is wrong, unless `tensors` are those that are `expected`."""
    both = {name: tensors[name] for name in expected if name in tensors}
    findings = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} is {list(tensor.shape)}, not {list(expected[name])}"
            for name, tensor in both.items() if tensor.shape != expected[name]
        ],
        "not floating point": [
            f"{name} is {tensor.dtype}" for name, tensor in both.items() if not tensor.is_floating_point()
        ],
    }  # fmt: skip
    wrong = [f"{len(names)} {kind} ({_some(names)})" for kind, names in findings.items() if names]
    if wrong:
        raise WeightsError(f"{complaint}: {'; '.join(wrong)}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join([*names[:NAMED_IN_ERRORS], *([f"and {more} more"] if more > 0 else [])])

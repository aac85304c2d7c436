"""A quantized transformer as a file: safetensors, whose header says what it was made of, and how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engines.config.networks import TransformerConfig
from engines.config.quantization import QuantizationConfig
from engines.errors import ConfigError, WeightsError
from engines.loading.checkpoint import Checkpoint
from engines.loading.lora import LoRAFile, read_mark
from engines.loading.state_dict import fill
from engines.wan.transformer import CausalTransformer

QUANTIZED_FILE = "quantized_transformer.safetensors"
"""What the file is called in the folder of a quantized model."""

ENTRY = "longtake.quantized"
"""In the header's metadata: everything below, as JSON."""

VERSION = 1

SCALES = ("weight_scale", "input_factor", "modulation_factor")
"""Tensors by which others are multiplied: none may be 0, negative or no number."""


@dataclass(frozen=True)
class QuantizedHeader:
    """What a quantized transformer was made of, and how.

    Args:
        model: the model whose transformer it is; its other networks are that model's own.
        recipe: how it was quantized.
        source: fingerprint of the transformer in fp32, with all that was merged into it.
        loras: marks of what the user had merged into it, see `LoRAFile.mark`.
        prompts: SHA-256 of the prompts that ranges were watched with; empty where nothing is smoothed.
        licence: terms of the weights it was made of.
        longtake: version that made it.
        tensors: SHA-256 of all tensors.
        ranges: who watched, our own code or modelopt.

    """

    model: str
    recipe: QuantizationConfig
    source: str
    loras: tuple[str, ...]
    prompts: str
    licence: str
    longtake: str
    tensors: str = ""
    ranges: str = "own"

    @classmethod
    def read(cls, path: Path) -> Self:
        """That of the file at `path`. Raises WeightsError if it has none, or a damaged or newer one."""
        try:
            with safe_open(path, "pt") as file:
                written = (file.metadata() or {}).get(ENTRY)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise WeightsError(f"{path} is damaged or cut short: {error}; quantize again") from error
        if written is None:
            raise WeightsError(f"{path} is no quantized transformer: `longtake quantize` makes one")
        try:
            document = json.loads(written)
            if (version := document.pop("version")) == VERSION:
                return cls._parse(document)
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WeightsError(f"the header of {path} is damaged: {error!r}; quantize again") from error
        raise WeightsError(f"{path} is of version {version}, and this Longtake reads {VERSION}; quantize again")

    @classmethod
    def _parse(cls, document: dict[str, Any]) -> Self:
        recipe = document.pop("recipe")
        held_back = tuple(recipe.pop("held_back"))
        loras = tuple(document.pop("loras"))
        for text in (*document.values(), *loras):
            if not isinstance(text, str):
                raise TypeError(f"{text!r} is no text")
        for lora in loras:
            read_mark(lora)
        return cls(recipe=QuantizationConfig(**recipe, held_back=held_back), loras=loras, **document)


def write_quantized(
    path: Path, tensors: Mapping[str, Tensor], header: QuantizedHeader, dtype: torch.dtype
) -> None:
    """Write what `engines.quantization.quantizer.quantize` made; what is not in 8 bits nor a scale, in `dtype`."""
    stored = {name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}
    document = {"version": VERSION, **asdict(header), "tensors": _digest(stored)}
    save_file(stored, path, metadata={ENTRY: json.dumps(document)})
    # The library lets nobody else read what it writes.
    path.chmod(0o644)


def load_quantized(
    config: TransformerConfig, path: Path, device: torch.device | str, dtype: torch.dtype
) -> CausalTransformer:
    """The transformer in `path`, which `config` says how to quantize; what is in 16 bits in `dtype`.

    Raises WeightsError, which names what is wrong, if the file is another model's or recipe's, or damaged.
    """
    header = QuantizedHeader.read(path)
    if header.recipe != config.quantization:
        raise WeightsError(f"{path} is quantized as {header.recipe}, and {config.quantization} is asked for")
    tensors = Checkpoint.open(path)
    if _digest(tensors) != header.tensors:
        raise WeightsError(f"{path} is damaged: its tensors are not those that were written; quantize again")
    with torch.device("meta"):
        network = CausalTransformer(config)
    filled = fill(network, tensors, path, device, dtype)
    _require_sound(filled, path)
    return filled


def require_no_loras(loras: Sequence[LoRAFile], model: str) -> None:
    """Raise WeightsError if there are any: nothing can be merged into weights in 8 bits."""
    if loras:
        raise WeightsError(
            f"{loras[0].path} cannot be merged into {model}, which is quantized; merge it before: "
            "longtake quantize MODEL --to int8 --lora FILE[:WEIGHT] --output FOLDER"
        )


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = tensor.dtype.itemsize == 1 or name.endswith(SCALES)
    return tensor.to("cpu", tensor.dtype if kept else dtype).contiguous()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_sound(network: CausalTransformer, path: Path) -> None:
    for name, tensor in network.named_buffers():
        if name.endswith(SCALES) and not bool(((tensor > 0) & tensor.isfinite()).all()):
            raise WeightsError(f"{path}: {name} has values that are 0, negative or no number; quantize again")

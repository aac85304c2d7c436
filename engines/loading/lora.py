"""Low-rank updates (Hu et al. 2021), merged into a transformer while it is loaded."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from engines.config.networks import TransformerConfig
from engines.config.validation import require
from engines.errors import WeightsError
from engines.loading.checkpoint import Checkpoint
from engines.loading.lora_format import CONFIG, PEFT_PREFIX, WEIGHTS, LoRANames, PeftConfig
from engines.loading.state_dict import require_fit, unchanged
from engines.wan.transformer import CausalTransformer

LORA_ENTRIES = ("generator_lora",)

A, B = "lora_A.weight", "lora_B.weight"


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA to merge: a file, or a folder of PEFT's, and the `weight` that its update is multiplied by."""

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(math.isfinite(self.weight), f"the weight of {self.path} is {self.weight}; it must be a number")

    @classmethod
    def parse(cls, text: str) -> Self:
        """FILE[:WEIGHT], with what is behind the last colon as the weight unless there is a file of that name."""
        path, colon, weight = text.rpartition(":")
        if not colon or Path(text).exists():
            path, weight = text, "1"
        try:
            given = float(weight)
        except ValueError:
            path, given = text, 1.0
        require(path != "", f"{text!r} names no file; a LoRA is given as FILE[:WEIGHT]")
        return cls(Path(path), given)

    @override
    def __str__(self) -> str:
        return f"{self.path}:{self.weight!r}"

    @property
    def weights(self) -> Path:
        """The file that holds the factors. Raises WeightsError if there is none."""
        if not self.path.is_dir():
            return self.path
        found = next((self.path / name for name in WEIGHTS if (self.path / name).is_file()), None)
        if found is None:
            raise WeightsError(f"the folder {self.path} has neither of {', '.join(WEIGHTS)}")
        return found

    @property
    def sha256(self) -> str:
        """Of what determines the update but its weight: the factors, and the config where there is one."""
        path = self.weights
        config = _config_of(path, Checkpoint.open(path, LORA_ENTRIES))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if config is not None:
            digest.update(config.read_bytes())
        return digest.hexdigest()

    @property
    def mark(self) -> str:
        """What a stream's results depend on, whatever the file is called."""
        return f"{self.weight!r} of {self.sha256}"


def read_mark(mark: str) -> tuple[float, str]:
    """The weight and the SHA-256 of a LoRA from its mark. Raises ValueError for a text that is none."""
    weight, _, sha256 = mark.partition(" of ")
    return float(weight), sha256


def marks(loras: Iterable[LoRAFile]) -> tuple[str, ...]:
    """Of those that change anything: a LoRA of weight 0 is none."""
    return tuple(lora.mark for lora in loras if lora.weight)


@dataclass(frozen=True)
class LoRA:
    """The factors of a file, and for each layer that it updates the scale of B A."""

    tensors: Checkpoint
    scales: Mapping[str, float]

    @classmethod
    def open(cls, file: LoRAFile, transformer: nn.Module) -> Self:
        """Map the file, and read it once.

        Raises WeightsError unless it has both factors, of one rank, for some of the linear layers, and numbers in
        them.
        """
        path = file.weights
        stored = Checkpoint.open(path, LORA_ENTRIES)
        layers = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
        tensors = stored.renamed(LoRANames(layers).canonical)
        ranks = _require_fit(path, tensors, layers, type(transformer).__name__)
        _require_finite(stored)
        beside = _config_of(path, stored)
        config = None if beside is None else PeftConfig.read(beside)
        scales = {layer: _scale(path, layer, rank, tensors, config) for layer, rank in ranks.items()}
        return cls(tensors, {layer: scale * file.weight for layer, scale in scales.items()})

    def add_to(self, weight: Tensor, layer: str) -> None:
        """Add the layer's update, if there is one, to its weight in fp32."""
        scale = self.scales.get(layer, 0.0)
        if scale:
            a, b = self.tensors[f"{layer}.{A}"], self.tensors[f"{layer}.{B}"]
            weight.addmm_(b.float(), a.float(), alpha=scale)


def merging(loras: Sequence[LoRA], transformer: nn.Module) -> Callable[[str, Tensor], Tensor]:
    """What makes of a parameter, by its name, W + the sum of all scaled B A in fp32; valid until the next call.

    It is the parameter as it is where nothing is to be added. The scratch has room for the largest of the layers:
    memory taken and given back layer by layer would leave holes.
    """
    changed = {layer for lora in loras for layer, scale in lora.scales.items() if scale}
    if not changed:
        return unchanged
    scratch = torch.empty(
        max(transformer.get_submodule(layer).get_parameter("weight").numel() for layer in changed)
    )

    def merge(name: str, weight: Tensor) -> Tensor:
        layer = name.removesuffix(".weight")
        if layer not in changed or name == layer:
            return weight
        merged = scratch[: weight.numel()].view(weight.shape).copy_(weight)
        for lora in loras:
            lora.add_to(merged, layer)
        return merged

    return merge


def require_loras_fit(files: Iterable[LoRAFile], config: TransformerConfig) -> None:
    """Raise WeightsError, before anything is loaded, unless each file can be merged into such a transformer."""
    with torch.device("meta"):
        transformer = CausalTransformer(config)
    for file in files:
        LoRA.open(file, transformer)


def _config_of(path: Path, keys: Iterable[str]) -> Path | None:
    """Where PEFT's config of a file lies, if PEFT has written it: others may lie in one folder with it."""
    config = path.with_name(CONFIG)
    peft = path.name in WEIGHTS or any(key.startswith(PEFT_PREFIX) for key in keys)
    return config if peft and config.is_file() else None


def _require_fit(
    path: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Linear], network: str
) -> dict[str, int]:
    """The rank of each layer that is updated."""
    shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.ndim == 2}
    usual = statistics.mode([shape[0] for name, shape in shapes.items() if name.endswith(A)] or [0])
    ranks, expected = dict[str, int](), dict[str, Sequence[int]]()
    for name, layer in layers.items():
        factors = f"{name}.{A}", f"{name}.{B}"
        if not any(factor in tensors for factor in factors):
            continue
        a, b = (shapes.get(factor) for factor in factors)
        ranks[name] = rank = a[0] if a is not None and b is not None and a[0] == b[1] else usual
        expected[factors[0]], expected[factors[1]] = (rank, layer.in_features), (layer.out_features, rank)
    alphas = {f"{name}.alpha" for name in ranks}
    rest = {name: tensor for name, tensor in tensors.items() if name not in alphas}
    require_fit(rest, expected, f"{path}, a LoRA of rank {usual}, does not fit {network}")
    if not ranks or 0 in ranks.values():
        raise WeightsError(f"{path} is no LoRA: it has no factors of a layer, or of rank 0")
    return ranks


def _require_finite(stored: Checkpoint) -> None:
    """Refuse what a training that diverged has left: merged, it would be a picture of nothing."""
    for key, tensor in stored.items():
        if not tensor.float().isfinite().all():
            raise WeightsError(f"{stored.path}: {key} has values that are no numbers; take another one")


def _scale(path: Path, layer: str, rank: int, tensors: Mapping[str, Tensor], config: PeftConfig | None) -> float:
    """Alpha / rank, and 1 where neither the file nor a config says what alpha is."""
    if f"{layer}.alpha" not in tensors:
        return 1.0 if config is None else config.scale(layer, rank)
    alpha = tensors[f"{layer}.alpha"]
    if alpha.numel() != 1 or not math.isfinite(alpha.item()):
        raise WeightsError(f"{path} has an alpha for {layer} that is no number: {list(alpha.shape)}")
    return alpha.item() / rank

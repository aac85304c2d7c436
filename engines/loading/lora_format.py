"""How LoRA files name what they hold, and where they say its scale.

Layers go by their own names, after what was wrapped around the network (`base_model.model.` of PEFT,
`diffusion_model.` of ComfyUI, ...), or with underscores for dots behind `lora_unet_`, as in kohya's scripts.
A factor is `lora_A` or `lora_down`, and `lora_B` or `lora_up`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from engines.errors import WeightsError
from engines.loading.checkpoint import FSDP_FRAGMENT

PEFT_PREFIX = "base_model."
PREFIXES = (PEFT_PREFIX, "model.", "diffusion_model.", "transformer.")
KOHYA_PREFIX = "lora_unet_"

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""What PEFT calls the files in a folder of its own."""

DEFAULT_RANK = DEFAULT_ALPHA = 8
"""Of PEFT, where its config does not say."""

_FACTORS = {
    "lora_A": "lora_A", "lora_down": "lora_A", "lora.down": "lora_A",
    "lora_B": "lora_B", "lora_up": "lora_B", "lora.up": "lora_B",
}  # fmt: skip
# PEFT has the adapter's name between a factor and `weight`.
_KEY = re.compile(r"(.+?)\.(?:(lora_[AB]|lora[_.](?:down|up))(?:(?:\.[^.]+)?\.weight)?|alpha)")


class LoRANames:
    """The names that the linear layers of a network go by in LoRA files."""

    def __init__(self, layers: Collection[str]) -> None:
        self._layers = {name: name for name in layers}
        self._layers |= {f"{KOHYA_PREFIX}{name.replace('.', '_')}": name for name in layers}

    def canonical(self, key: str) -> str:
        """LAYER.lora_A.weight, LAYER.lora_B.weight or LAYER.alpha; `key` as it is if it is neither."""
        found = _KEY.fullmatch(without_prefixes(key))
        layer = None if found is None else self._layers.get(found[1])
        if found is None or layer is None:
            return key
        return f"{layer}.alpha" if found[2] is None else f"{layer}.{_FACTORS[found[2]]}.weight"


def without_prefixes(key: str) -> str:
    """`key` without what was wrapped around the network."""
    key = key.replace(FSDP_FRAGMENT, "")
    while prefix := next(filter(key.startswith, PREFIXES), None):
        key = key.removeprefix(prefix)
    return key


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT's adapter_config.json says of the scale: alpha / rank, or alpha / sqrt(rank) if `use_rslora`.

    The patterns are regular expressions for the ends of layers' names.
    """

    path: Path
    r: int = DEFAULT_RANK
    lora_alpha: float = DEFAULT_ALPHA
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises WeightsError for one that cannot be used, or means more than two factors."""
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            known = {name: document[name] for name in cls.__dataclass_fields__ if document.get(name) is not None}
            config = cls(**{**known, "path": path})
            numbers = [config.r, config.lora_alpha, *config.rank_pattern.values(), *config.alpha_pattern.values()]
            if not all(math.isfinite(number) for number in numbers) or config.r < 1:
                raise ValueError(f"r {config.r}, lora_alpha {config.lora_alpha} and patterns must be numbers")
            for pattern in (*config.rank_pattern, *config.alpha_pattern):
                re.compile(pattern)
        except (OSError, ValueError, TypeError, AttributeError, re.error) as error:
            raise WeightsError(f"{path} cannot be used: {error}") from error
        if document.get("peft_type", "LORA") != "LORA" or document.get("use_dora"):
            kind = "DoRA" if document.get("use_dora") else document["peft_type"]
            raise WeightsError(f"{path} is of a {kind} adapter; a plain LoRA can be merged")
        return config

    def scale(self, layer: str, rank: int) -> float:
        """Of the update of a layer. Raises WeightsError if its rank is another than is said here."""
        expected = self.rank_pattern.get(_matching(self.rank_pattern, layer), self.r)
        if rank != expected:
            raise WeightsError(f"{self.path} says rank {expected} for {layer}, whose factors have rank {rank}")
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, layer), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matching(patterns: Iterable[str], layer: str) -> str:
    """The first pattern that the end of the name matches, as PEFT looks it up; the name if none does."""
    return next((pattern for pattern in patterns if re.match(rf"(?:.*\.)?(?:{pattern})$", layer)), layer)

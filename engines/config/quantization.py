"""Which of a transformer's layers hold their weights in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from typing_extensions import override

from engines.config.validation import require

WeightFormat = Literal["int8", "fp8"]

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

Rounding = Literal["nearest", "compensated"]

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

QUANTIZED_LAYERS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2",
)  # fmt: skip
"""The linear layers of a block whose rows are as many as a block's tokens. Prompts and timesteps, whose layers run
once for many passes, and the head, which alone costs more than all of these together, stay as they are."""


@dataclass(frozen=True)
class QuantizationConfig:
    """A transformer in 8 bits: a scale for each output channel of a weight, and one for each row of its input.

    `smoothing` is the alpha of SmoothQuant (Xiao et al. 2022): how much of the spread of an input's channels is
    moved into the weights; 0 for none. `rounding` says whether weights go to the nearest step, or make up for each
    other's errors. `held_back` names layers, such as "blocks.5.ffn.2", that are not quantized.
    """

    weights: WeightFormat
    smoothing: float = 0.0
    rounding: Rounding = "nearest"
    held_back: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = ", ".join(WEIGHT_FORMATS)
        require(self.weights in WEIGHT_FORMATS, f"weights in {self.weights!r} are not known; they can be {known}")
        known = ", ".join(ROUNDINGS)
        require(self.rounding in ROUNDINGS, f"rounding {self.rounding!r} is not known; it can be {known}")
        require(0 <= self.smoothing <= 1, f"smoothing is {self.smoothing}; it must lie between 0 and 1")
        unknown = [name for name in self.held_back if _in_block(name) not in QUANTIZED_LAYERS]
        require(not unknown, f"{', '.join(unknown)} cannot be held back: no such layer is quantized")

    @override
    def __str__(self) -> str:
        smoothed = f", smoothing {self.smoothing:g}" if self.smoothing else ""
        held = f", held back: {', '.join(self.held_back)}" if self.held_back else ""
        return f"{self.weights}{smoothed}, rounding {self.rounding}{held}"

    def quantizes(self, layer: str) -> bool:
        """Whether `layer`, by its name in a state dict, holds 8 bits."""
        return _in_block(layer) in QUANTIZED_LAYERS and layer not in self.held_back


def _in_block(layer: str) -> str:
    """ "blocks.5.ffn.2" as "ffn.2"."""
    return layer.split(".", 2)[-1] if layer.startswith("blocks.") else ""

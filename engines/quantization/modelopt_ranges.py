"""NVIDIA's modelopt as a second opinion: the ranges that its calibration finds, over the rollouts of our own.

The package is the extra `quantize`; nothing else in Longtake needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from engines.config.quantization import QUANTIZED_LAYERS
from engines.config.stream import StreamConfig
from engines.config.video_stream import AnyStreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.quantization.calibration import Footage, calibrate
from engines.quantization.inputs import InputStatistics, layer_inputs
from engines.quantization.smoothing import LEAST
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer

WATCH_CHANNELS = [
    {"quantizer_name": "*", "enable": False},
    *(
        {"quantizer_name": f"*{layer}.input_quantizer", "cfg": {"num_bits": 8, "axis": -1}, "enable": True}
        for layer in QUANTIZED_LAYERS
    ),
]
"""For modelopt: each channel of the inputs that we round."""


class SecondOpinion(NamedTuple):
    """What modelopt saw, with our own moments, and our own maxima by the same names."""

    statistics: InputStatistics
    own_maxima: dict[str, Tensor]

    @override
    def __str__(self) -> str:
        theirs, own = (
            torch.cat([maxima[name] for name in self.own_maxima]).clamp(min=LEAST)
            for maxima in (self.statistics.maxima, self.own_maxima)
        )
        ratios = theirs / own
        return (
            f"modelopt's maxima beside our own, {len(ratios):,} channels: largest ratio {ratios.max():.4f}, "
            f"smallest {ratios.min():.4f}, median {ratios.median():.4f}"
        )


def require_modelopt() -> None:
    """Raise ConfigError if it is not installed."""
    if find_spec("modelopt") is None:
        raise ConfigError(
            "modelopt is not installed, whose ranges are asked for: pip install 'longtake[quantize]'"
        )


def calibrate_by_modelopt(
    model: Model,
    prompts: Sequence[Prompt],
    stream: AnyStreamConfig,
    blocks: int,
    made: Callable[[int], None] = lambda _: None,
    *,
    moments: bool = True,
    footage: Footage | None = None,
) -> SecondOpinion:
    """As `calibrate`, with maxima by modelopt's calibrator. Raises ConfigError if it is not installed."""
    require_modelopt()
    import modelopt.torch.quantization as mtq

    own = InputStatistics()

    def roll_out(_: CausalTransformer) -> None:
        nonlocal own
        own = calibrate(twin, prompts, stream, blocks, made, moments=moments, footage=footage)

    # Modelopt replaces layers: those of a transformer that shares its weights with the one to be quantized.
    encoder = None if isinstance(stream, StreamConfig) else model.encoder
    twin = Model.of(model.config, _sharing(model.transformer), encoder=encoder)
    with redirect_stdout(sys.stderr):
        mtq.quantize(twin.transformer, {"quant_cfg": WATCH_CHANNELS, "algorithm": "max"}, forward_loop=roll_out)
    maxima = {
        given.name: torch.stack([_maxima(twin.transformer, layer) for layer in given.layers]).amax(dim=0)
        for given in layer_inputs(model.config.transformer)
    }
    return SecondOpinion(InputStatistics(maxima, own.moments), own.maxima)


def _sharing(transformer: CausalTransformer) -> CausalTransformer:
    with torch.device("meta"):
        twin = CausalTransformer(transformer.config)
    twin.load_state_dict(transformer.state_dict(), assign=True)
    return twin.eval().requires_grad_(False)


def _maxima(transformer: CausalTransformer, layer: str) -> Tensor:
    """[channels] fp32, of a layer's input."""
    found = transformer.get_submodule(f"{layer}.input_quantizer").amax
    assert isinstance(found, Tensor)
    return found.detach().float().flatten().clone()

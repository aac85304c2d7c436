"""Modelopt beside our own code, where it is installed: the extra `quantize`."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from engines.quantization.inputs import InputStatistics
from engines.quantization.modelopt_ranges import SecondOpinion, calibrate_by_modelopt
from engines.text.prompt import Prompt
from kernels.eight_bits import INT8_MAX, linear_int8_library
from tests.engines.quantization.conftest import Watched
from tests.support.quantized import POCKET, rolled_out

CONFIGS = ("INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG")

needs_modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="modelopt is not installed")

# It warns of what it imports.
pytestmark = pytest.mark.filterwarnings("ignore")


def by_our_product(layer: Any, x: Tensor) -> Tensor:
    """What `layer`, one of modelopt's, makes of x, in integers and with its own scales."""
    given, weight = layer.input_quantizer, layer.weight_quantizer.amax
    if given.pre_quant_scale is not None:
        # The weights have been divided by it.
        x = x * given.pre_quant_scale
    steps = to_steps(layer.weight, weight, -INT8_MAX)
    rows, scales = to_steps(x, given.amax, -INT8_MAX - 1), (given.amax / INT8_MAX).expand(x.shape[:-1])
    return linear_int8_library(rows, scales, steps, weight.flatten() / INT8_MAX, layer.bias)


def to_steps(x: Tensor, most: Tensor, least: float) -> Tensor:
    """As modelopt rounds, to the last bit: a number over a tensor would be another quotient."""
    return (x * (torch.tensor(INT8_MAX) / most)).round().clamp(least, INT8_MAX).to(torch.int8)


def error(layer: nn.Module, x: Tensor, made: Tensor) -> float:
    return float((by_our_product(layer, x) - made).norm() / made.norm())


@needs_modelopt
@pytest.mark.parametrize("config", CONFIGS)
def test_our_product_with_its_scales_gives_its_result(config: str) -> None:
    import modelopt.torch.quantization as mtq

    torch.manual_seed(1)
    x = torch.randn(64, 1536) * torch.rand(1536).mul(3).exp()
    layer: Any = nn.Sequential(nn.Linear(1536, 256))
    mtq.quantize(layer, getattr(mtq, config), forward_loop=lambda layer: layer(x))
    with torch.no_grad():
        assert error(layer[0], x, layer(x)) < 1e-5
        assert error(layer[0], 1.5 * x, layer(1.5 * x)) < 1e-5


@needs_modelopt
def test_so_it_does_in_every_layer_of_the_pocket_model(watched: Watched) -> None:
    import modelopt.torch.quantization as mtq

    model = Model.of(watched.model.config, copy.deepcopy(watched.model.transformer), watched.model.vae)
    of_blocks = {"quantizer_name": "*embedding*", "enable": False}, {"quantizer_name": "*head*", "enable": False}
    config = mtq.INT8_DEFAULT_CFG | {"quant_cfg": [*mtq.INT8_DEFAULT_CFG["quant_cfg"], *of_blocks]}
    prompts = watched.shown[:1]
    mtq.quantize(model.transformer, config, forward_loop=lambda _: rolled_out(model, POCKET.stream, prompts, 3))
    errors = []
    for name, layer in model.transformer.named_modules():
        if name.startswith("blocks.") and isinstance(layer, nn.Linear) and "cross_attn.k" not in name:
            layer.register_forward_hook(lambda layer, x, made: errors.append(error(layer, x[0], made)))
    rolled_out(model, POCKET.stream, prompts, 3)
    assert len(errors) > 8 * POCKET.transformer.layers
    assert max(errors) < 1e-5


@needs_modelopt
def test_its_ranges_are_ours_and_the_model_stays_as_it_is(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    before = {name: type(layer) for name, layer in model.transformer.named_modules()}
    opinion = calibrate_by_modelopt(model, prompts[:2], small, 3)
    own = calibrate(model, prompts[:2], small, 3)
    assert opinion.statistics.maxima.keys() == opinion.own_maxima.keys() == own.maxima.keys()
    for name, most in own.maxima.items():
        torch.testing.assert_close(opinion.statistics.maxima[name], most)
        torch.testing.assert_close(opinion.statistics.moments[name], own.moments[name])
    assert {name: type(layer) for name, layer in model.transformer.named_modules()} == before


def test_the_report_sets_maxima_side_by_side() -> None:
    own = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0])}
    theirs = {"a": torch.tensor([2.0, 2.0]), "b": torch.tensor([2.0])}
    told = str(SecondOpinion(InputStatistics(theirs), own))
    assert "3 channels: largest ratio 2.0000, smallest 0.5000, median 1.0000" in told

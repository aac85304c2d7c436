"""The transposed convolution beside what it stands for: pixels repeated two by two, then convolved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engines.config.presets import preset
from engines.loading.model import Model
from engines.vae.doubling_conv import DoublingConv
from tests.engines.vae.pieces import assert_equal


def conv(*, bias: bool = True) -> DoublingConv:
    torch.manual_seed(1)
    return DoublingConv(6, 4, bias=bias).requires_grad_(False)


def repeated(layer: DoublingConv, x: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0), layer.weight, layer.bias, padding=1)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3), (8, 6)], ids=str)
def test_it_is_the_convolution_of_repeated_pixels(size: tuple[int, int], bias: bool) -> None:
    layer, x = conv(bias=bias), torch.randn(2, 6, *size)
    assert_equal(layer(x), repeated(layer, x))


def test_sums_that_were_made_once_change_no_bit_and_no_state_dict() -> None:
    layer, x = conv(), torch.randn(2, 6, 5, 3)
    before, names = layer(x), list(layer.state_dict())
    layer.fold()
    assert torch.equal(layer(x), before)
    assert list(layer.state_dict()) == names == ["weight", "bias"]


def test_in_bf16_it_is_as_close_to_fp32_as_two_roundings_of_its_weights_allow() -> None:
    layer, x = conv(), torch.randn(2, 6, 8, 6).bfloat16()
    layer.weight.data = layer.weight.bfloat16().float()
    layer.bias = None
    exact = repeated(layer, x.float())
    low = layer.bfloat16()
    of_sums, of_pixels = ((y.float() - exact).norm() / exact.norm() for y in (low(x), repeated(low, x)))
    assert of_sums <= 1.5 * of_pixels


def test_it_takes_16_multiply_adds_where_repeated_pixels_take_36() -> None:
    layer, x = conv(), torch.randn(1, 6, 8, 6)
    layer.fold()
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 16 * 6 * 4 * 8 * 6


def test_a_model_that_is_loaded_has_its_sums() -> None:
    layers = [
        layer for layer in Model.random(preset("tiny-taehv"), 1).vae.modules() if isinstance(layer, DoublingConv)
    ]
    assert len(layers) == 3
    assert all(layer.folded is not None for layer in layers)

"""What a decoder does beside its convolutions, and those that double its pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_cases.case import Case, MakeCase, Maker, Tensors
from engines.vae.doubling_conv import DoublingConv
from kernels.vae.causal_pad import causal_pad, causal_pad_reference
from kernels.vae.conv_epilogue import conv_epilogue, conv_epilogue_reference
from kernels.vae.frame_pairs import frame_pairs, frame_pairs_reference


def decoder_cases(make: Maker) -> list[MakeCase]:
    """Every op."""
    return [
        partial(_causal_pad, make), partial(_conv_epilogue, make), partial(_doubling_conv, make),
        partial(_frame_pairs, make),
    ]  # fmt: skip


def _decoder(make: Maker, frames: int, channels_times: int = 1) -> Tensor:
    """[1, C, frames, H, W], channels-last."""
    channels, _, height, width = make.sizes.pictures
    x = make.randn(1, channels * channels_times, frames, height, width)
    return x.contiguous(memory_format=torch.channels_last_3d)


def _causal_pad(make: Maker, sets: int) -> Case:
    channels, frames, *_ = make.sizes.pictures

    def inputs() -> Tensors:
        return (
            _decoder(make, frames),
            _decoder(make, 2),
            _decoder(make, 2),
            make.randn(channels),
            make.randn(channels),
        )

    def joined(op: Callable[..., Tensor], *tensors: Tensor) -> Tensors:
        return op(*tensors), tensors[2].clone()

    providers = {"triton": partial(joined, causal_pad), "reference": partial(joined, causal_pad_reference)}
    return make.case("norm, SiLU and past", inputs, providers, providers["reference"], 0, sets)


def _conv_epilogue(make: Maker, sets: int) -> Case:
    """In place, so each call is of a copy: two passes more, in both."""
    channels, frames, *_ = make.sizes.pictures

    def inputs() -> Tensors:
        return _decoder(make, frames), make.randn(channels), _decoder(make, frames)

    def copied(op: Callable[..., None], y: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
        y = y.clone()
        op(y, bias, shortcut, False)
        return y

    providers = {
        "triton": partial(copied, conv_epilogue),
        "reference": partial(copied, conv_epilogue_reference),
    }
    return make.case("bias and shortcut, with a copy", inputs, providers, providers["reference"], 0, sets)


def _doubling_conv(make: Maker, sets: int) -> Case:
    """To the last stage's pictures: from half their height and width, and twice their channels."""
    channels, frames, height, width = make.sizes.pictures
    rows, columns = max(1, height // 2), max(1, width // 2)
    conv = DoublingConv(2 * channels, channels, bias=False).to(make.device, make.dtype).requires_grad_(False)
    conv.fold()

    def inputs() -> Tensors:
        x = make.randn(frames, 2 * channels, rows, columns)
        return (x.contiguous(memory_format=torch.channels_last),)

    def repeated(x: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0), conv.weight.to(x.dtype), padding=1)

    providers: dict[str, Callable[..., Tensor]] = {"transposed": conv, "reference": repeated}
    flops = 2 * 16 * frames * rows * columns * 2 * channels * channels
    return make.case("doubled and convolved", inputs, providers, repeated, flops, sets)


def _frame_pairs(make: Maker, sets: int) -> Case:
    _, frames, *_ = make.sizes.pictures

    def inputs() -> Tensors:
        return _decoder(make, frames), _decoder(make, 1), _decoder(make, 1)

    providers: dict[str, Callable[..., Tensor]] = {"triton": frame_pairs, "reference": frame_pairs_reference}
    return make.case("frame pairs", inputs, providers, frame_pairs_reference, 0, sets)

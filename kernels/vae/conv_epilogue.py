"""What follows a convolution: its bias, a shortcut beside it and a ReLU, written over the convolution's output.

    y = relu(y + bias + shortcut), the ReLU and the shortcut where there are any

    y, shortcut   [B, C, T, H, W]   channels-last without gaps; y is overwritten
    bias          [C]

cuDNN's convolution in PyTorch leaves the bias to a pass of its own.

Bytes: y is read and written and a shortcut read: 2 or 3 tensors. In PyTorch's own operators each of the three is a
pass: 2 for the bias, 3 for the shortcut, 2 for the ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import AotCase
from kernels.vae.frame_layout import (
    CHANNELS,
    HALF,
    FrameCase,
    block_sizes,
    check_dense,
    check_like,
    frame_cases,
    frame_tile,
)


def conv_epilogue_reference(y: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool) -> None:
    """Write over `y`, rounding after each operation as the networks do."""
    y += bias.view(-1, 1, 1, 1)
    if shortcut is not None:
        y += shortcut
    if relu:
        y.relu_()


@triton.jit
def _conv_epilogue_kernel(
    p_y: tl.tensor, p_bias: tl.tensor, p_shortcut: tl.tensor, C: tl.tensor, M: tl.tensor, SHORTCUT: tl.constexpr,
    RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK_M of the M pixels of all frames."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_N)
    m_c = o_c < C
    m_y = (o_m < M)[:, None] & m_c[None, :]
    o_y = o_m[:, None] * C + o_c[None, :]
    b_y = tl.load(p_y + o_y, mask=m_y, other=0.0).to(tl.float32)
    b_y += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    if SHORTCUT:
        b_y += tl.load(p_shortcut + o_y, mask=m_y, other=0.0).to(tl.float32)
    if RELU:
        b_y = tl.where(b_y < 0.0, 0.0, b_y)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@torch.library.custom_op(
    "longtake::conv_epilogue",
    mutates_args=("y",),
    schema="(Tensor(a!) y, Tensor bias, Tensor? shortcut, bool relu) -> ()",
)
def conv_epilogue(y: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool) -> None:
    """As `conv_epilogue_reference`, with one rounding at the end.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit, or the shortcut is y itself.

    """
    beside = {"y": y} if shortcut is None else {"y": y, "shortcut": shortcut}
    check_dense("conv_epilogue", y.shape, y, **beside)
    check_like("conv_epilogue", (y.shape[1],), y, bias=bias)
    if shortcut is not None and shortcut.data_ptr() == y.data_ptr():
        raise ValueError("conv_epilogue: the shortcut is y itself, which is overwritten; give it other memory")
    channels = y.shape[1]
    tile, pixels = frame_tile("conv_epilogue", y), y.numel() // channels
    _conv_epilogue_kernel[(triton.cdiv(pixels, tile.m),)](
        y, bias, y if shortcut is None else shortcut, channels, pixels,
        SHORTCUT=shortcut is not None, RELU=relu, **block_sizes(tile), **tile.options,
    )  # fmt: skip


@conv_epilogue.register_fake
def _(y: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool) -> None:
    return None


def aot_cases() -> Sequence[AotCase]:
    """Behind the real decoders' residual and memory blocks, in bf16."""
    wan = [_case(case, relu=False) for case in frame_cases("conv_epilogue", CHANNELS["wan"])]
    return [*wan, *(_case(case, relu=True) for case in frame_cases("conv_epilogue_relu", CHANNELS["taehv"]))]


def _case(case: FrameCase, *, relu: bool) -> AotCase:
    pointers = dict.fromkeys(("p_y", "p_bias", "p_shortcut"), HALF)
    return AotCase(
        name=case.name,
        kernel=_conv_epilogue_kernel,
        architecture=case.architecture,
        tile=case.tile,
        arguments=pointers | {"C": "i32", "M": "i32"},
        constants={"SHORTCUT": True, "RELU": relu} | block_sizes(case.tile),
        aligned=(*pointers, "C", "M"),
    )

"""From a noisy block and its flow to the clean latents, and back to the next step's level of noise.

    clean = noisy - sigma[b] * flow                              in fp64, rounded to the latents' dtype
    out   = (1 - next_sigma[b]) * clean + next_sigma[b] * noise  in fp32, rounded to the latents' dtype

    noisy, flow, noise, out  [B, F, C, H, W]   latents of one dtype
    sigma, next_sigma        [B] fp32          in device memory, so that a captured graph serves every step

Behind the last step `next_sigma` is 0 and `out` is the clean latents, bit for bit. Precisions are those of
`engines.sampling.flow_schedule`, and so are the bits: no product and sum are fused.

Bytes: three tensors read and one written, 8 per element in 16 bits: 2.4 MB for a block at 480x832. PyTorch's own
operators go through fp64 and fp32 copies: 11 launches and 116 bytes per element.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

TILES: Tiles = {sm: Tile(m=1, n=1024, warps=4) for sm in ARCHITECTURES} | {INTERPRETER: Tile(m=1, n=256, warps=1)}
"""`n` elements of one stream."""


def flow_step_reference(noisy: Tensor, flow: Tensor, noise: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """`FlowSchedule.predict_clean` and then `FlowSchedule.add_noise`, for streams at different steps."""
    now, then = (s.view(-1, *[1] * (noisy.dim() - 1)) for s in (sigma, next_sigma))
    clean = (noisy.double() - now.double() * flow.double()).to(noisy.dtype)
    return ((1 - then) * clean.float() + then * noise.float()).to(noisy.dtype)


@triton.jit
def _flow_step_kernel(
    p_noisy: tl.tensor, p_flow: tl.tensor, p_noise: tl.tensor, p_sigma: tl.tensor, p_next_sigma: tl.tensor,
    p_out: tl.tensor, N: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A program: BLOCK of the N elements of one stream."""
    i_stream = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    o_x = i_stream * N + o_n
    sigma = tl.load(p_sigma + i_stream).to(tl.float64)
    next_sigma = tl.load(p_next_sigma + i_stream)
    b_noisy = tl.load(p_noisy + o_x, mask=m_n, other=0.0).to(tl.float32).to(tl.float64)
    b_flow = tl.load(p_flow + o_x, mask=m_n, other=0.0).to(tl.float32).to(tl.float64)
    b_noise = tl.load(p_noise + o_x, mask=m_n, other=0.0).to(tl.float32)
    b_clean = (b_noisy - sigma * b_flow).to(tl.float32).to(p_out.dtype.element_ty).to(tl.float32)
    b_out = (1.0 - next_sigma) * b_clean + next_sigma * b_noise
    tl.store(p_out + o_x, b_out.to(p_out.dtype.element_ty), mask=m_n)


@torch.library.custom_op(
    "longtake::flow_step",
    mutates_args=(),
    schema="(Tensor noisy, Tensor flow, Tensor noise, Tensor sigma, Tensor next_sigma) -> Tensor",
)
def flow_step(noisy: Tensor, flow: Tensor, noise: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """As `flow_step_reference`.

    Raises:
        ValueError: shapes, strides, dtypes or devices do not fit.

    """
    _check(noisy, flow, noise, sigma, next_sigma)
    tile = tile_for(TILES, architecture(noisy.device), "flow_step")
    out = torch.empty_like(noisy)
    elements = noisy[0].numel()
    options = tile.options | {"enable_fp_fusion": False}
    _flow_step_kernel[(triton.cdiv(elements, tile.n), noisy.shape[0])](
        noisy, flow, noise, sigma, next_sigma, out, elements, BLOCK=tile.n, **options
    )
    return out


@flow_step.register_fake
def _(noisy: Tensor, flow: Tensor, noise: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    return torch.empty_like(noisy)


def _check(noisy: Tensor, flow: Tensor, noise: Tensor, sigma: Tensor, next_sigma: Tensor) -> None:
    if noisy.dtype not in FLOATS or noisy.numel() == 0:
        raise ValueError(f"flow_step: no kernel for latents {list(noisy.shape)} of {noisy.dtype}")
    for name, x in (("noisy", noisy), ("flow", flow), ("noise", noise)):
        if (x.shape, x.dtype, x.device) != (noisy.shape, noisy.dtype, noisy.device) or not x.is_contiguous():
            raise ValueError(
                f"flow_step: {name} must be contiguous {list(noisy.shape)} of {noisy.dtype} on {noisy.device}; "
                f"got {list(x.shape)} of {x.dtype} on {x.device} with strides {list(x.stride())}"
            )
    for name, x in (("sigma", sigma), ("next_sigma", next_sigma)):
        if x.shape != noisy.shape[:1] or x.dtype != torch.float32 or x.device != noisy.device or x.stride(0) != 1:
            raise ValueError(
                f"flow_step: {name} must be fp32 [{noisy.shape[0]}] on {noisy.device}; got {list(x.shape)} of "
                f"{x.dtype} on {x.device} with strides {list(x.stride())}"
            )


def aot_cases() -> Sequence[AotCase]:
    """Latents in bf16."""
    latents = dict.fromkeys(("p_noisy", "p_flow", "p_noise"), FLOATS[torch.bfloat16])
    pointers = latents | {"p_sigma": "*fp32", "p_next_sigma": "*fp32", "p_out": FLOATS[torch.bfloat16]}
    return [
        AotCase(
            name=f"flow_step_sm{sm}",
            kernel=_flow_step_kernel,
            architecture=sm,
            tile=TILES[sm],
            arguments=pointers | {"N": "i32"},
            constants={"BLOCK": TILES[sm].n},
            aligned=(*pointers, "N"),
        )
        for sm in ARCHITECTURES
    ]

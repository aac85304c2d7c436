"""What `benchmarks.kernels` measures: each op at the sizes of a pass, with its implementations side by side.

Bytes of a floor are those that cannot be avoided however an op is written: inputs read once, outputs written once.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure.counts import Work
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from kernels import linear as linears
from kernels.attention.kv_view import KVView, KVViewTable
from kernels.attention.library import cudnn, flash_attn, library_attention, torch_cpu
from kernels.attention.merge import merge, merge_reference
from kernels.attention.qk_norm_rope import qk_norm_rope
from kernels.attention.reference import prompt_attention
from kernels.attention.rope import RopeTable, Turns, apply_rope
from kernels.attention.window import window_attention, window_attention_reference
from kernels.flow_step import flow_step, flow_step_reference
from kernels.gated_residual import gated_residual, gated_residual_reference
from kernels.layernorm_modulate import layernorm_modulate, layernorm_modulate_int8, layernorm_modulate_reference
from kernels.quantize import quantize_keys
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.vae.causal_pad import causal_pad, causal_pad_reference
from kernels.vae.conv_epilogue import conv_epilogue, conv_epilogue_reference
from kernels.vae.frame_pairs import frame_pairs, frame_pairs_reference
from kernels.vae.upsample import upsample, upsample_reference

EPS = 1e-6
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Root mean square of an error over that of the truth. A rounding to bf16 is 2e-3, and an op does a few."""

INT8_BOUND = 2e-2
"""A step of 127 is 0.8 % of the largest channel."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """Of a pass over a block, and of the pictures (channels, frames, height, width) in a decoder's last stage."""

    frames: int
    rows: int
    columns: int
    heads: int
    head_dim: int
    ffn_dim: int
    window_blocks: int
    prompt_keys: int
    text_len: int
    pictures: tuple[int, int, int, int]

    @classmethod
    def longlive(cls, size: str) -> Self:
        """The 1.3B model with pictures of `size`, HxW, and a prompt of 40 tokens."""
        height, width = map(int, size.split("x"))
        model, stream = preset("longlive-1.3b").transformer, StreamConfig(height=height, width=width)
        return cls(
            stream.block_frames, stream.rows, stream.columns, model.heads, model.head_dim, model.ffn_dim,
            stream.window_blocks, 41, model.text_len, (96, 12, height, width),
        )  # fmt: skip

    @classmethod
    def tiny(cls) -> Self:
        """For the interpreter."""
        return cls(
            frames=2, rows=1, columns=3, heads=2, head_dim=16, ffn_dim=48, window_blocks=3, prompt_keys=5,
            text_len=9, pictures=(8, 2, 3, 5),
        )  # fmt: skip

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Tokens of a block."""
        return self.frames * self.frame_tokens

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Case:
    """An op at one size. Implementations and `truth` take the number of a set of inputs.

    `set_bytes` are those of one set. `bound` is for the error's root mean square over the truth's.
    """

    name: str
    work: Work
    providers: Mapping[str, Callable[[int], Tensors]]
    truth: Callable[[int], Tensors]
    bound: float
    set_bytes: int
    device: torch.device


MakeCase = Callable[[int], Case]
"""A case with so many sets of inputs."""


@dataclass(frozen=True)
class Maker:
    """Makes cases at `sizes`."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype

    def randn(self, *shape: int) -> Tensor:
        """Random values."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def modulation(self) -> Tensor:
        """[1, frames, 1, dim], one of six in a table."""
        return self.randn(1, self.sizes.frames, 6, self.sizes.dim)[:, :, :1]

    def token_rows(self) -> Tensor:
        """[1, frames, tokens of a frame, dim]."""
        return self.randn(1, self.sizes.frames, self.sizes.frame_tokens, self.sizes.dim)

    def case(
        self,
        name: str,
        inputs: Callable[[], Tensors],
        providers: Mapping[str, Callable[..., Tensor | Tensors]],
        reference: Callable[..., Tensor | Tensors],
        flops: int,
        sets: int,
        bound: float | None = None,
    ) -> Case:
        """An op of tensors; the truth is its reference in fp32."""
        given = [inputs() for _ in range(sets)]
        made = _outputs(reference(*given[0]))
        nbytes = sum(x.nbytes for x in (*given[0], *made))
        return Case(
            name=name,
            work=Work(flops, nbytes),
            providers={n: partial(_call, function, given) for n, function in providers.items()},
            truth=lambda i: _outputs(reference(*(x.float() for x in given[i]))),
            bound=bound or BOUNDS[self.dtype],
            set_bytes=nbytes,
            device=self.device,
        )


def _call(function: Callable[..., Tensor | Tensors], given: Sequence[Tensors], i: int) -> Tensors:
    return _outputs(function(*given[i]))


def _outputs(made: Tensor | Tensors) -> Tensors:
    return (made,) if isinstance(made, Tensor) else tuple(made)


def all_cases(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> list[MakeCase]:
    """Every op."""
    make = Maker(sizes, device, dtype)
    fills = [partial(_window, make, [filled], 0, False) for filled in range(1, sizes.window_blocks + 1)]
    full = sizes.window_blocks
    return [
        *fills,
        partial(_window, make, [full], 1, False),
        partial(_window, make, [1, full], 0, False),
        partial(_window, make, [full], 1, True),
        partial(_merge, make), partial(_prompt, make), partial(_qk_norm_rope, make, False),
        partial(_qk_norm_rope, make, True), partial(_rms_norm, make), partial(_layernorm_modulate, make),
        partial(_layernorm_modulate_int8, make), partial(_gated_residual, make),
        partial(_linear, make), partial(_linear_gelu, make), partial(_linear_residual, make),
        partial(_flow_step, make), partial(_causal_pad, make), partial(_conv_epilogue, make),
        partial(_upsample, make), partial(_frame_pairs, make),
    ]  # fmt: skip


def _window(make: Maker, fills: Sequence[int], sink_blocks: int, int8: bool, sets: int) -> Case:
    """Streams whose windows hold so many blocks, the first `sink_blocks` of them scored by other queries."""
    sizes = make.sizes
    block = (sets, sizes.window_blocks, sizes.tokens, sizes.heads, sizes.head_dim)
    lent = [_lent(make, block, filled, sink_blocks, int8) for filled in fills]
    table, streams = KVViewTable(lent, make.device), len(fills)
    queries = make.randn(sets, 2, streams, sizes.tokens, sizes.heads, sizes.head_dim)

    def attend(attention: Callable[..., Tensor], i: int) -> Tensors:
        sink = queries[i, 1] if sink_blocks else None
        return (attention(queries[i, 0], table, i, sink_queries=sink),)

    attentions = {"triton": window_attention} | ({} if int8 else _libraries(make.device))
    keys = sum(fills) * sizes.tokens
    moved = 2 * keys * sizes.dim * make.dtype.itemsize + (2 + bool(sink_blocks)) * queries[0, 0].nbytes
    lengths = "+".join(str(filled * sizes.tokens) for filled in fills)
    words = ["two rotations" if sink_blocks else "", "int8 keys" if int8 else ""]
    saved = keys * sizes.dim * (make.dtype.itemsize - 1) if int8 else 0
    return Case(
        name=", ".join([f"attention {sizes.tokens} x {lengths}", *filter(None, words)]),
        work=Work(4 * sizes.tokens * keys * sizes.dim, moved - saved),
        providers={name: partial(attend, attention) for name, attention in attentions.items()},
        truth=partial(attend, window_attention_reference),
        bound=INT8_BOUND if int8 else BOUNDS[make.dtype],
        set_bytes=moved,
        device=make.device,
    )  # fmt: skip


def _lent(make: Maker, block: tuple[int, ...], filled: int, sink_blocks: int, int8: bool) -> KVView:
    keys, values = make.randn(*block), make.randn(*block)
    tokens, scales = make.sizes.tokens, None
    if int8:
        keys, scales = quantize_keys(keys)
    return KVView(keys, values, filled * tokens, sink_blocks * tokens, key_scales=scales)


def _libraries(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    if device.type != "cuda":
        return {"library": library_attention(torch_cpu, merge)}
    found: dict[str, Callable[..., Tensor]] = {"library": library_attention(cudnn, merge)}
    if importlib.util.find_spec("flash_attn") is not None:
        found["flash-attn"] = library_attention(flash_attn, merge)
    return found


def _prompt(make: Maker, sets: int) -> Case:
    """A prompt with its padding as one key, and by the library with all of it."""
    sizes = make.sizes
    padding = sizes.text_len - sizes.prompt_keys + 1
    shape = (sets, sizes.prompt_keys, sizes.heads, sizes.head_dim)
    keys, values = make.randn(*shape), make.randn(*shape)
    table = KVViewTable([KVView(keys, values, sizes.prompt_keys, last_log=math.log(padding))], make.device)
    whole = [torch.cat([x, x[:, -1:].expand(-1, padding - 1, -1, -1)], 1) for x in (keys, values)]
    queries = make.randn(sets, 1, sizes.tokens, sizes.heads, sizes.head_dim)
    return Case(
        name=f"prompt attention {sizes.tokens} x {sizes.prompt_keys}",
        work=Work(4 * sizes.tokens * sizes.prompt_keys * sizes.dim, 2 * queries[0].nbytes + 2 * keys[0].nbytes),
        providers={
            "triton": lambda i: (window_attention(queries[i], table, i),),
            "library, padded": lambda i: (prompt_attention(queries[i, 0], whole[0][i], whole[1][i], None)[None],),
        },
        truth=lambda i: (window_attention_reference(queries[i], table, i),),
        bound=BOUNDS[make.dtype],
        set_bytes=2 * queries[0].nbytes,
        device=make.device,
    )


def _merge(make: Maker, sets: int) -> Case:
    sizes = make.sizes

    def inputs() -> Tensors:
        parts = make.randn(2, sizes.tokens, sizes.heads, sizes.head_dim)
        return *parts, *torch.randn(2, sizes.heads, sizes.tokens, device=make.device)

    providers: dict[str, Callable[..., Tensor]] = {"triton": merge, "reference": merge_reference}
    return make.case("merge of two attentions", inputs, providers, merge_reference, 0, sets)


def _qk_norm_rope(make: Maker, two: bool, sets: int) -> Case:
    """Queries, and keys and values as they then lie in the slab's last slot."""
    sizes = make.sizes
    slab = make.randn(2, sets, sizes.window_blocks, sizes.tokens, sizes.heads, sizes.head_dim)
    table = KVViewTable([KVView(slab[0], slab[1], sizes.window_blocks * sizes.tokens)], make.device)
    place = (sizes.window_blocks - 1) * sizes.tokens
    slot_mapping = torch.tensor([[place]], dtype=torch.int32, device=make.device)
    grid = RopeTable(sizes.rows, sizes.columns, sizes.head_dim, make.device)
    turns = [grid.freqs_cis(range(first, first + sizes.frames))[None] for first in (90, 90, 9)]
    rows, weights = make.randn(sets, 3, 1, sizes.tokens, sizes.dim), make.randn(2, sizes.dim)

    def fused(i: int) -> Tensors:
        q, k, v = rows[i]
        turned = Turns(turns[0], turns[1], turns[2] if two else None)
        made = qk_norm_rope(q, k, v, weights[0], weights[1], turned, table, slot_mapping, i, EPS)
        return *(x for x in made if x is not None), slab[0, i, -1], slab[1, i, -1]

    def plain(i: int, dtype: torch.dtype) -> Tensors:
        q, k, v = rows[i].to(dtype)
        normed = [rms_norm_reference(x, w, EPS) for x, w in zip((q, k), weights.to(dtype), strict=True)]
        queries, keys = (x.unflatten(-1, (sizes.heads, -1)) for x in normed)
        turned = [apply_rope(queries, turn) for turn in turns[1 : 3 if two else 2]]
        slab[0, i, -1].copy_(apply_rope(keys, turns[0])[0])
        slab[1, i, -1].copy_(v.unflatten(-1, (sizes.heads, -1))[0])
        return *turned, slab[0, i, -1], slab[1, i, -1]

    def apart(call: Callable[[int], Tensors], i: int) -> Tensors:
        return tuple(x.clone() for x in call(i))

    read = rows[0].nbytes + weights.nbytes + sum(turn.nbytes for turn in turns[: 3 if two else 2])
    nbytes = read + (4 if two else 3) * rows[0, 0].nbytes
    return Case(
        name=f"norm, RoPE and write{', two rotations' if two else ''}",
        work=Work(0, nbytes),
        providers={"triton": fused, "reference": lambda i: plain(i, make.dtype)},
        truth=partial(apart, lambda i: plain(i, torch.float32)),
        bound=BOUNDS[make.dtype],
        set_bytes=nbytes,
        device=make.device,
    )


def _rms_norm(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.randn(1, make.sizes.tokens, make.sizes.dim), make.randn(make.sizes.dim)

    providers = {
        "triton": lambda x, weight: rms_norm(x, weight, EPS),
        "reference": lambda x, weight: rms_norm_reference(x, weight, EPS),
    }
    return make.case("RMS norm", inputs, providers, providers["reference"], 0, sets)


def _layernorm_modulate(make: Maker, sets: int) -> Case:
    providers = {
        "triton": lambda x, shift, scale: layernorm_modulate(x, shift, scale, EPS),
        "reference": lambda x, shift, scale: layernorm_modulate_reference(x, shift, scale, EPS),
    }
    return make.case("modulate", _modulated(make), providers, providers["reference"], 0, sets)


def _layernorm_modulate_int8(make: Maker, sets: int) -> Case:
    def dequantized(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        levels, scales = layernorm_modulate_int8(x, shift, scale, EPS)
        return levels * scales.unsqueeze(-1)

    providers = {"triton, with its inverse": dequantized}
    reference = partial(layernorm_modulate_reference, eps=EPS)
    return make.case("modulate to int8", _modulated(make), providers, reference, 0, sets, INT8_BOUND)


def _modulated(make: Maker) -> Callable[[], Tensors]:
    return lambda: (make.token_rows(), make.modulation(), make.modulation())


def _gated_residual(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.token_rows(), make.token_rows(), make.modulation()

    return make.case(
        "gate and residual",
        inputs,
        {"triton": gated_residual, "reference": gated_residual_reference},
        gated_residual_reference,
        0,
        sets,
    )


def _weights(make: Maker, inputs: int, outputs: int) -> Tensors:
    return make.randn(outputs, inputs) / inputs**0.5, make.randn(outputs)


def _linear(make: Maker, sets: int) -> Case:
    dim = make.sizes.dim

    def inputs() -> Tensors:
        return make.randn(1, make.sizes.tokens, dim), *_weights(make, dim, dim)

    providers: dict[str, Callable[..., Tensor]] = {"triton": linears.linear, "library": F.linear}
    flops = 2 * make.sizes.tokens * dim**2
    return make.case(f"linear {dim} to {dim}", inputs, providers, F.linear, flops, sets)


def _linear_gelu(make: Maker, sets: int) -> Case:
    dim, ffn = make.sizes.dim, make.sizes.ffn_dim

    def inputs() -> Tensors:
        return make.token_rows(), *_weights(make, dim, ffn)

    reference = linears.linear_gelu_reference
    providers: dict[str, Callable[..., Tensor]] = {"triton": linears.linear_gelu, "library": reference}
    flops = 2 * make.sizes.tokens * dim * ffn
    return make.case(f"linear {dim} to {ffn}, GELU", inputs, providers, reference, flops, sets)


def _linear_residual(make: Maker, sets: int) -> Case:
    dim, ffn = make.sizes.dim, make.sizes.ffn_dim

    def inputs() -> Tensors:
        x = make.randn(1, make.sizes.frames, make.sizes.frame_tokens, ffn)
        return x, *_weights(make, ffn, dim), make.token_rows(), make.modulation()

    def library(x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, gate: Tensor) -> Tensor:
        return gated_residual(rows, F.linear(x, weight, bias), gate)

    reference = linears.linear_residual_reference
    providers: dict[str, Callable[..., Tensor]] = {
        "triton": linears.linear_residual, "library and triton": library, "library": reference
    }  # fmt: skip
    flops = 2 * make.sizes.tokens * dim * ffn
    return make.case(f"linear {ffn} to {dim}, gate and residual", inputs, providers, reference, flops, sets)


def _flow_step(make: Maker, sets: int) -> Case:
    sizes = make.sizes
    shape = (1, sizes.frames, 16, 2 * sizes.rows, 2 * sizes.columns)
    levels = [torch.full((1,), sigma, device=make.device) for sigma in (0.9, 0.6)]

    def inputs() -> Tensors:
        return make.randn(*shape), make.randn(*shape), make.randn(*shape), *levels

    providers: dict[str, Callable[..., Tensor]] = {"triton": flow_step, "reference": flow_step_reference}
    return make.case("flow step", inputs, providers, flow_step_reference, 0, sets)


def _pictures(make: Maker, frames: int, channels_times: int = 1) -> Tensor:
    """[1, C, frames, H, W], channels-last."""
    channels, _, height, width = make.sizes.pictures
    x = make.randn(1, channels * channels_times, frames, height, width)
    return x.contiguous(memory_format=torch.channels_last_3d)


def _causal_pad(make: Maker, sets: int) -> Case:
    channels, frames, *_ = make.sizes.pictures

    def inputs() -> Tensors:
        return (
            _pictures(make, frames),
            _pictures(make, 2),
            _pictures(make, 2),
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
        return _pictures(make, frames), make.randn(channels), _pictures(make, frames)

    def copied(op: Callable[..., None], y: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
        y = y.clone()
        op(y, bias, shortcut, False)
        return y

    providers = {
        "triton": partial(copied, conv_epilogue),
        "reference": partial(copied, conv_epilogue_reference),
    }
    return make.case("bias and shortcut, with a copy", inputs, providers, providers["reference"], 0, sets)


def _upsample(make: Maker, sets: int) -> Case:
    """To the last stage's size: from pictures of half the height and width."""
    channels, frames, height, width = make.sizes.pictures

    def inputs() -> Tensors:
        x = make.randn(1, 2 * channels, frames // 2, max(1, height // 2), max(1, width // 2))
        return x.contiguous(memory_format=torch.channels_last_3d), make.randn(2 * channels)

    providers: dict[str, Callable[..., Tensor]] = {
        "triton": lambda x, bias: upsample(x, bias, 2),
        "reference": lambda x, bias: upsample_reference(x, bias, 2),
    }
    return make.case("doubled in time and space", inputs, providers, providers["reference"], 0, sets)


def _frame_pairs(make: Maker, sets: int) -> Case:
    _, frames, *_ = make.sizes.pictures

    def inputs() -> Tensors:
        return _pictures(make, frames), _pictures(make, 1), _pictures(make, 1)

    providers: dict[str, Callable[..., Tensor]] = {"triton": frame_pairs, "reference": frame_pairs_reference}
    return make.case("frame pairs", inputs, providers, frame_pairs_reference, 0, sets)

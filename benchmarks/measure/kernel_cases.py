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
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure.counts import Work
from benchmarks.measure.eight_bit_cases import eight_bit_cases
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from kernels import linear as linears
from kernels.attention.backend import AttentionBackend
from kernels.attention.kv_view import KVPlanes, KVView
from kernels.attention.library import flash_attn_attention, library_attention
from kernels.attention.qk_norm_rope import qk_norm_rope, qk_norm_rope_reference
from kernels.attention.reference import attend
from kernels.attention.rope import frame_freqs, spatial_freqs
from kernels.attention.rope import frame_pairs as frame_pairs_of
from kernels.attention.rotate_slots import rotate_slots, rotate_slots_reference
from kernels.attention.slots import RawKeys, RopeFreqs, Slots
from kernels.attention.window import window_attention, window_attention_reference
from kernels.flow_step import flow_step, flow_step_reference
from kernels.layernorm_modulate import (
    add_layernorm_modulate,
    add_layernorm_modulate_reference,
    layernorm_modulate,
    layernorm_modulate_reference,
)
from kernels.quantize import quantize_heads
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.tiles import FP16_SUMS, INTERPRETER, architecture
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


DENSE = "library, dense"
"""A library's attention that the host tells which keys to read, so that a graph serves one run at one fill."""


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
            stream.window_frames // stream.block_frames, 41, model.text_len, (96, 12, height, width),
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

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Channels in and out of a layer's linear maps, but for the one with GELU."""
        return (self.dim, self.dim), (self.dim, 3 * self.dim), (self.ffn_dim, self.dim)


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
        eight_bit_ops: int = 0,
    ) -> Case:
        """An op of tensors; the truth is its reference in fp32."""
        given = [inputs() for _ in range(sets)]
        made = _outputs(reference(*given[0]))
        nbytes = sum(x.nbytes for x in (*given[0], *made))
        return Case(
            name=name,
            work=Work(flops, nbytes, eight_bit_ops),
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
    blocks, full = range(1, sizes.window_blocks + 1), sizes.window_blocks
    return [
        *(partial(_window, make, [filled], False) for filled in blocks),
        partial(_window, make, [1, full], False), partial(_window, make, [full], True),
        *_int8_windows(make), partial(_prompt, make),
        partial(_qk_norm_rope, make, False), partial(_qk_norm_rope, make, True), partial(_rotate_slots, make),
        partial(_rms_norm, make), partial(_layernorm_modulate, make), partial(_add_layernorm_modulate, make),
        *(partial(_linear, make, inner, outer) for inner, outer in sizes.products),
        partial(_linear_gelu, make), *eight_bit_cases(make), partial(_flow_step, make), partial(_causal_pad, make),
        partial(_conv_epilogue, make), partial(_upsample, make), partial(_frame_pairs, make),
    ]  # fmt: skip


def _window(make: Maker, fills: Sequence[int], int8: bool, sets: int) -> Case:
    """Rows whose windows hold so many blocks, one behind the other in a pool."""
    sizes, rows = make.sizes, len(fills)
    window = sizes.window_blocks * sizes.tokens
    keys, values = make.randn(2, sets, rows * window, sizes.heads, sizes.head_dim)
    rounded, scales = quantize_heads(keys) if int8 else (keys, None)
    planes = KVPlanes(rounded, values, scales)
    starts = [row * window for row in range(rows)]
    ends = [start + filled * sizes.tokens for start, filled in zip(starts, fills, strict=True)]
    kv = KVView(planes, torch.tensor([starts, ends], dtype=torch.int32, device=make.device), window)
    queries = make.randn(sets, rows, sizes.tokens, sizes.heads, sizes.head_dim)

    def run(attention: AttentionBackend, i: int) -> Tensors:
        return (attention(queries[i], kv, i),)

    attentions: dict[str, AttentionBackend] = {"triton": window_attention}
    attentions |= {} if int8 else _libraries(make.device, ends if rows == 1 else None)
    attended = sum(fills) * sizes.tokens
    moved = 2 * attended * sizes.dim * make.dtype.itemsize + 2 * queries[0].nbytes
    lengths = "+".join(str(filled * sizes.tokens) for filled in fills)
    saved = attended * sizes.dim * (make.dtype.itemsize - 1) if int8 else 0
    return Case(
        name=f"attention {sizes.tokens} x {lengths}{', int8 keys' if int8 else ''}",
        work=Work(4 * sizes.tokens * attended * sizes.dim, moved - saved),
        providers={name: partial(run, attention) for name, attention in attentions.items()},
        truth=partial(run, window_attention_reference),
        bound=INT8_BOUND if int8 else BOUNDS[make.dtype],
        set_bytes=moved,
        device=make.device,
    )


def _int8_windows(make: Maker) -> list[MakeCase]:
    """A full window with keys and values in INT8; and with sums in fp16, where the chip has a tile for them."""
    summed = architecture(make.device) in (INTERPRETER, *FP16_SUMS)
    return [partial(_int8_window, make, fp16_sums) for fp16_sums in ((False, True) if summed else (False,))]


def _int8_window(make: Maker, fp16_sums: bool, sets: int) -> Case:
    sizes = make.sizes
    tokens = sizes.window_blocks * sizes.tokens
    keys, values = (quantize_heads(x) for x in make.randn(2, sets, tokens, sizes.heads, sizes.head_dim))
    planes = KVPlanes(keys[0], values[0], keys[1], values[1])
    kv = KVView(planes, _int32(make, [[0], [tokens]]), tokens)
    queries = make.randn(sets, 1, sizes.tokens, sizes.heads, sizes.head_dim)
    attention = partial(window_attention, fp16_sums=fp16_sums)
    moved = 2 * (keys[0][0].nbytes + keys[1][0].nbytes) + 2 * queries[0].nbytes
    return Case(
        name=f"attention {sizes.tokens} x {tokens}, int8 keys and values{', fp16 sums' if fp16_sums else ''}",
        work=Work(4 * sizes.tokens * tokens * sizes.dim, moved),
        providers={"triton": lambda i: (attention(queries[i], kv, i),)},
        truth=lambda i: (window_attention_reference(queries[i], kv, i),),
        bound=INT8_BOUND,
        set_bytes=moved,
        device=make.device,
    )


def _libraries(device: torch.device, ends: Sequence[int] | None) -> dict[str, AttentionBackend]:
    """Libraries that find the run on the device, and one that is told of it by the host, with as many keys."""
    found: dict[str, AttentionBackend] = {"library": library_attention(device)}
    if ends is not None:
        found[DENSE] = partial(_dense, ends[0])
    if device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        found["flash-attn"] = flash_attn_attention
    return found


def _dense(tokens: int, queries: Tensor, kv: KVView, layer: int) -> Tensor:
    """PyTorch's public attention over the first `tokens` of a pool: a graph of it serves this run at this fill."""
    keys, values = kv.planes.keys[layer, :tokens], kv.planes.values[layer, :tokens]
    backends = [SDPBackend.CUDNN_ATTENTION] if queries.is_cuda else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):
        return attend(queries[0], keys, values).unsqueeze(0)


def _prompt(make: Maker, sets: int) -> Case:
    """A prompt with its padding as one key, and by the library with all of it."""
    sizes = make.sizes
    padding = sizes.text_len - sizes.prompt_keys + 1
    keys, values = make.randn(2, sets, sizes.prompt_keys, sizes.heads, sizes.head_dim)
    bounds = torch.tensor([[0], [sizes.prompt_keys]], dtype=torch.int32, device=make.device)
    last_log = torch.tensor([math.log(padding)], device=make.device)
    kv = KVView(KVPlanes(keys, values), bounds, sizes.text_len, last_log)
    whole = [torch.cat([x, x[:, -1:].expand(-1, padding - 1, -1, -1)], 1) for x in (keys, values)]
    queries = make.randn(sets, 1, sizes.tokens, sizes.heads, sizes.head_dim)
    return Case(
        name=f"prompt attention {sizes.tokens} x {sizes.prompt_keys}",
        work=Work(4 * sizes.tokens * sizes.prompt_keys * sizes.dim, 2 * queries[0].nbytes + 2 * keys[0].nbytes),
        providers={
            "triton": lambda i: (window_attention(queries[i], kv, i, num_splits=1),),
            "library, padded": lambda i: (attend(queries[i, 0], whole[0][i], whole[1][i])[None],),
        },
        truth=lambda i: (window_attention_reference(queries[i], kv, i),),
        bound=BOUNDS[make.dtype],
        set_bytes=2 * queries[0].nbytes,
        device=make.device,
    )


def _qk_norm_rope(make: Maker, raw: bool, sets: int) -> Case:
    """Queries, and keys and values as they then lie in the pool's last slots; with raw keys of all, or of none."""
    sizes = make.sizes
    written = slice((sizes.window_blocks - 1) * sizes.tokens, None)
    planes, kept = _pool(make, sets)
    last = (sizes.window_blocks - 1) * sizes.frames
    slots = Slots(_int32(make, [0]), _int32(make, [[last + frame for frame in range(sizes.frames)]]))
    raw_keys = RawKeys(kept, Slots(_int32(make, [0]), _int32(make, [list(range(sizes.frames))]))) if raw else None
    frame = frame_freqs(range(90, 90 + sizes.frames), sizes.head_dim)[None].to(make.device)
    freqs = RopeFreqs(frame, spatial_freqs(sizes.rows, sizes.columns, sizes.head_dim).to(make.device))
    rows, weights = make.randn(sets, 3, 1, sizes.tokens, sizes.dim), make.randn(2, sizes.dim)

    def run(op: Callable[..., Tensor], dtype: torch.dtype, i: int) -> Tensors:
        q, k, v = rows[i].to(dtype)
        here, apart = (planes, raw_keys) if dtype == make.dtype else _as(dtype, planes, raw_keys)
        queries = op(q, k, v, *weights.to(dtype), freqs, here, slots, apart, i, EPS)
        outputs = queries, here.keys[i, written].clone(), here.values[i, written].clone()
        return outputs if apart is None else (*outputs, apart.plane[i].clone())

    nbytes = rows[0].nbytes + weights.nbytes + 3 * rows[0, 0].nbytes + (kept[0].nbytes if raw else 0)
    return Case(
        name=f"norm, RoPE and write{', with raw keys' if raw else ''}",
        work=Work(0, nbytes),
        providers={
            "triton": partial(run, qk_norm_rope, make.dtype),
            "reference": partial(run, qk_norm_rope_reference, make.dtype),
        },
        truth=partial(run, qk_norm_rope_reference, torch.float32),
        bound=BOUNDS[make.dtype],
        set_bytes=nbytes,
        device=make.device,
    )


def _rotate_slots(make: Maker, sets: int) -> Case:
    """The frames of a block in the pool's first slots, in one layer; a model's are turned all at once."""
    sizes = make.sizes
    planes, raw = _pool(make, sets)
    slots = _int32(make, [frame * sizes.frame_tokens for frame in range(sizes.frames)])
    freqs = frame_freqs(range(90, 90 + sizes.frames), sizes.head_dim).to(make.device)

    def run(op: Callable[..., None], dtype: torch.dtype, i: int) -> Tensors:
        here = KVPlanes(planes.keys[i : i + 1].to(dtype), planes.values[i : i + 1].to(dtype))
        op(here, raw[i : i + 1].to(dtype), freqs, slots, slots, sizes.frame_tokens)
        return (here.keys[0, : sizes.tokens, :, : raw.shape[-1]].clone(),)

    nbytes = 2 * raw[0].nbytes
    return Case(
        name=f"{sizes.frames} slots turned",
        work=Work(0, nbytes),
        providers={
            "triton": partial(run, rotate_slots, make.dtype),
            "reference": partial(run, rotate_slots_reference, make.dtype),
        },
        truth=partial(run, rotate_slots_reference, torch.float32),
        bound=BOUNDS[make.dtype],
        set_bytes=nbytes,
        device=make.device,
    )


def _pool(make: Maker, sets: int) -> tuple[KVPlanes, Tensor]:
    """A full window for each set, and the raw keys of a block."""
    sizes = make.sizes
    keys, values = make.randn(2, sets, sizes.window_blocks * sizes.tokens, sizes.heads, sizes.head_dim)
    return KVPlanes(keys, values), make.randn(sets, sizes.tokens, sizes.heads, 2 * frame_pairs_of(sizes.head_dim))


def _as(dtype: torch.dtype, planes: KVPlanes, raw: RawKeys | None) -> tuple[KVPlanes, RawKeys | None]:
    kept = None if raw is None else RawKeys(raw.plane.to(dtype), raw.slots)
    return KVPlanes(planes.keys.to(dtype), planes.values.to(dtype)), kept


def _int32(make: Maker, values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=make.device)


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
        "triton": lambda x, shift, factor: layernorm_modulate(x, shift, factor, EPS),
        "reference": lambda x, shift, factor: layernorm_modulate_reference(x, shift, factor, EPS),
    }
    return make.case("modulate", _modulated(make), providers, providers["reference"], 0, sets)


def _add_layernorm_modulate(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.token_rows(), make.token_rows(), *(make.modulation() for _ in range(3))

    ops: dict[str, Callable[..., Tensors]] = {
        "triton": add_layernorm_modulate,
        "reference": add_layernorm_modulate_reference,
    }
    providers = {name: partial(_with_eps, op) for name, op in ops.items()}
    return make.case("gate, residual and modulate", inputs, providers, providers["reference"], 0, sets)


def _with_eps(op: Callable[..., Tensors], *given: Tensor) -> Tensors:
    return op(*given, EPS)


def _modulated(make: Maker) -> Callable[[], Tensors]:
    return lambda: (make.token_rows(), make.modulation(), make.modulation())


def _weights(make: Maker, inputs: int, outputs: int) -> Tensors:
    return make.randn(outputs, inputs) / inputs**0.5, make.randn(outputs)


def _linear(make: Maker, inner: int, outer: int, sets: int) -> Case:
    def inputs() -> Tensors:
        return make.randn(1, make.sizes.tokens, inner), *_weights(make, inner, outer)

    providers: dict[str, Callable[..., Tensor]] = {"triton": linears.linear, "library": F.linear}
    flops = 2 * make.sizes.tokens * inner * outer
    return make.case(f"linear {inner} to {outer}", inputs, providers, F.linear, flops, sets)


def _linear_gelu(make: Maker, sets: int) -> Case:
    dim, ffn = make.sizes.dim, make.sizes.ffn_dim

    def inputs() -> Tensors:
        return make.token_rows(), *_weights(make, dim, ffn)

    reference = linears.linear_gelu_reference
    providers: dict[str, Callable[..., Tensor]] = {
        "triton": linears.linear_gelu, "library": linears.linear_gelu_library, "library, GELU apart": reference
    }  # fmt: skip
    flops = 2 * make.sizes.tokens * dim * ffn
    return make.case(f"linear {dim} to {ffn}, GELU", inputs, providers, reference, flops, sets)


def _flow_step(make: Maker, sets: int) -> Case:
    sizes = make.sizes
    shape = (1, sizes.frames, 16, 2 * sizes.rows, 2 * sizes.columns)
    levels = [torch.full((1,), sigma, device=make.device) for sigma in (0.9, 0.6)]

    def inputs() -> Tensors:
        return make.randn(*shape), make.randn(*shape), make.randn(*shape), *levels

    providers: dict[str, Callable[..., Tensor]] = {"triton": flow_step, "reference": flow_step_reference}
    return make.case("flow step", inputs, providers, flow_step_reference, 0, sets)


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
        return _decoder(make, frames), _decoder(make, 1), _decoder(make, 1)

    providers: dict[str, Callable[..., Tensor]] = {"triton": frame_pairs, "reference": frame_pairs_reference}
    return make.case("frame pairs", inputs, providers, frame_pairs_reference, 0, sets)

"""Attention over windows and prompts, and what brings keys and values into the pool."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernel_cases.case import BOUNDS, EPS, Case, MakeCase, Maker, Tensors
from benchmarks.measure.counts import Work
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
from kernels.quantize import quantize_heads
from kernels.tiles import FP16_SUMS, INTERPRETER, architecture

INT8_BOUND = 2e-2
"""A step of 127 is 0.8 % of the largest channel."""

DENSE = "library, dense"
"""A library's attention that the host tells which keys to read, so that a graph serves one run at one fill."""


def attention_cases(make: Maker) -> list[MakeCase]:
    """Every op."""
    blocks, full = range(1, make.sizes.window_blocks + 1), make.sizes.window_blocks
    return [
        *(partial(_window, make, [filled], False) for filled in blocks),
        partial(_window, make, [1, full], False), partial(_window, make, [full], True),
        *_int8_windows(make), partial(_prompt, make),
        partial(_qk_norm_rope, make, False), partial(_qk_norm_rope, make, True), partial(_rotate_slots, make),
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
    name = f"norm, RoPE and write{', with raw keys' if raw else ''}"
    return make.in_place(name, nbytes, run, qk_norm_rope, qk_norm_rope_reference)


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
    return make.in_place(f"{sizes.frames} slots turned", nbytes, run, rotate_slots, rotate_slots_reference)


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

"""The kernels that choose a pass's slots: see `kernels.slot_choice.slot_queue`.

`frame_means` reads a batch's keys and values once, 2 N bytes a token with N those of its keys in 16 bits; what
`choose_slots` moves is small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.kv_view import KVPlanes, require_integers
from kernels.slot_choice.slot_queue import CAPACITY, EPS, FIELDS, RECORD, SlotQueues
from kernels.tiles import ARCHITECTURES, INTERPRETER, AotCase, Tile, Tiles, architecture, tile_for
from kernels.token_rows import FLOATS

MEAN_TILES: Tiles = {sm: Tile(m=32, n=128, warps=4) for sm in ARCHITECTURES} | {
    INTERPRETER: Tile(m=64, n=2048, warps=1)
}
"""`m` tokens of `n` channels at a time."""

CHOICE_TILES: Tiles = {sm: Tile(m=1, n=2048, warps=4) for sm in ARCHITECTURES} | {
    INTERPRETER: Tile(m=1, n=2048, warps=1)
}
"""`n` channels of a mean at a time."""


@triton.jit
def _frame_means_kernel(
    p_keys: tl.tensor, p_values: tl.tensor, p_key_scales: tl.tensor, p_value_scales: tl.tensor,
    p_means: tl.tensor, frame_tokens: tl.tensor, pool_tokens: tl.tensor,
    C: tl.constexpr, D: tl.constexpr, INT8_KEYS: tl.constexpr, INT8_VALUES: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """A program: some channels of a frame, of its keys or of its values."""
    i_frame, values = tl.program_id(0), tl.program_id(2)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_sum = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, frame_tokens, BLOCK_T):
        o_t = first + tl.arange(0, BLOCK_T)
        m_t = o_t < frame_tokens
        token = i_frame.to(tl.int64) * frame_tokens + o_t
        o_x, m_x = token[:, None] * C + o_c[None, :], m_t[:, None] & m_c[None, :]
        o_scale = (o_c // D)[None, :] * pool_tokens + token[:, None]
        if values == 0:
            b_x = tl.load(p_keys + o_x, mask=m_x, other=0.0).to(tl.float32)
            if INT8_KEYS:
                b_x = b_x * tl.load(p_key_scales + o_scale, mask=m_x, other=0.0)
        else:
            b_x = tl.load(p_values + o_x, mask=m_x, other=0.0).to(tl.float32)
            if INT8_VALUES:
                b_x = b_x * tl.load(p_value_scales + o_scale, mask=m_x, other=0.0)
        b_sum += tl.sum(b_x, 0)
    tl.store(p_means + (i_frame * 2 + values) * C + o_c, b_sum / frame_tokens, mask=m_c)


@triton.jit
def _cosine(
    p_a: tl.tensor, b_b: tl.tensor, b_length: tl.tensor, o_c: tl.tensor, m_c: tl.tensor, EPS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Of a vector in memory and one of which the length is known."""
    b_a = tl.load(p_a + o_c, mask=m_c, other=0.0)
    return tl.sum(b_a * b_b) / (tl.maximum(tl.sqrt(tl.sum(b_a * b_a)), EPS) * b_length)


@triton.jit
def _weakest_end(
    p_mean: tl.tensor, p_sink: tl.tensor, test: tl.tensor, threshold: tl.tensor, o_c: tl.tensor, m_c: tl.tensor,
    SINK: tl.constexpr, C: tl.constexpr, EPS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The end of the sink's slot that is to be given up; 0 for none."""
    weakest, least = 0, threshold
    if test != 0:
        b_k, b_v = tl.load(p_mean + o_c, mask=m_c, other=0.0), tl.load(p_mean + C + o_c, mask=m_c, other=0.0)
        k_length = tl.maximum(tl.sqrt(tl.sum(b_k * b_k)), EPS)
        v_length = tl.maximum(tl.sqrt(tl.sum(b_v * b_v)), EPS)
        for i in range(SINK):
            p_slot = p_sink + i * 2 * C
            k_cosine = _cosine(p_slot, b_k, k_length, o_c, m_c, EPS)
            similarity = 0.5 * (k_cosine + _cosine(p_slot + C, b_v, v_length, o_c, m_c, EPS))
            weakest = tl.where(similarity < least, i + 1, weakest)
            least = tl.minimum(similarity, least)
    return weakest


@triton.jit
def _keep_sink_mean(
    p_mean: tl.tensor, p_sink: tl.tensor, slot: tl.tensor, o_c: tl.tensor, m_c: tl.tensor,
    SINK: tl.constexpr, C: tl.constexpr,
) -> None:  # fmt: skip
    """The mean of a frame that is written into a slot of the sink."""
    if slot < SINK:
        p_slot = p_sink + slot * 2 * C
        tl.store(p_slot + o_c, tl.load(p_mean + o_c, mask=m_c, other=0.0), mask=m_c)
        tl.store(p_slot + C + o_c, tl.load(p_mean + C + o_c, mask=m_c, other=0.0), mask=m_c)


@triton.jit(do_not_specialize=["layer"])
def _choose_slots_kernel(
    p_records: tl.tensor, p_sink_means: tl.tensor, p_steps: tl.tensor, p_means: tl.tensor, p_slots: tl.tensor,
    records: tl.tensor, sink_slots: tl.tensor, threshold: tl.tensor, layer: tl.tensor,
    SINK: tl.constexpr, TESTED: tl.constexpr, FRAMES: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
    FIELDS: tl.constexpr, RECORD: tl.constexpr, CAPACITY: tl.constexpr, EPS: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one row."""
    i_b = tl.program_id(0)
    p_step = p_steps + i_b * FIELDS
    stamp, full, pop = tl.load(p_step + 2), tl.load(p_step + 3), tl.load(p_step + 4)
    p_layer = p_records + layer.to(tl.int64) * records * RECORD
    p_read = p_layer + tl.load(p_step).to(tl.int64) * RECORD
    p_write = p_layer + tl.load(p_step + 1).to(tl.int64) * RECORD
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    o_sink = (layer.to(tl.int64) * sink_slots + tl.load(p_step + 8)) * 2 * C
    p_mean = p_means + i_b * FRAMES * 2 * C
    slot = tl.load(p_write + 1)
    if tl.load(p_write) != stamp:
        length = tl.load(p_read + 2)
        first = 0
        if TESTED:
            first = _weakest_end(
                p_mean, p_sink_means + o_sink, tl.load(p_step + 7), threshold, o_c, m_c, SINK, C, EPS
            )
        inserted = tl.where(first > 0, 1, 0)
        head = tl.where(inserted == 1, first, tl.load(p_read + 3))
        leaves = full * pop
        # What joins at the back: the first end once more if it was of the ring, or that of the next slots.
        append = tl.load(p_step + 6)
        last = tl.where(length > 0, tl.load(p_read + 3 + tl.maximum(length - 1, 0)), first)
        joining = tl.where(full != 0, tl.where((leaves == 1) & (head > SINK), head, 0), append)
        joining = tl.where((full == 0) & (last == append), 0, joining)
        joins = tl.where(joining > 0, 1, 0)
        o_e = tl.arange(0, CAPACITY)
        b_ends = tl.load(p_read + 3 + o_e, mask=o_e < length, other=SINK + 1)
        of_sink = inserted + tl.sum(tl.where(b_ends <= SINK, 1, 0))
        lost = tl.maximum(length + inserted + joins - leaves - CAPACITY, 0)
        # In the old queue; what is lost is the last of the sink's.
        o_from = o_e + leaves - inserted + tl.where(o_e + leaves >= of_sink - lost, lost, 0)
        b_ends = tl.load(p_read + 3 + o_from, mask=(o_from >= 0) & (o_from < length), other=0)
        length += inserted + joins - leaves - lost
        b_ends = tl.where(o_from < 0, first, b_ends)
        b_ends = tl.where((o_e == length - 1) & (joins == 1), joining, b_ends)
        slot = tl.where(full != 0, head, tl.load(p_step + 5)) - FRAMES
        tl.store(p_write + 1, slot)
        tl.store(p_write + 2, length)
        tl.store(p_write + 3 + o_e, tl.where(o_e < length, b_ends, 0))
        tl.store(p_write + 3 + CAPACITY, tl.load(p_read + 3 + CAPACITY) + lost)
        tl.store(p_write, stamp)
    for i in range(FRAMES):
        tl.store(p_slots + i_b * FRAMES + i, slot + i)
        if TESTED:
            _keep_sink_mean(p_mean + i * 2 * C, p_sink_means + o_sink, slot + i, o_c, m_c, SINK, C)


def frame_means(staged: KVPlanes, frames: int) -> Tensor:
    """As `frame_means_reference`.

    Raises:
        ValueError: the tokens are no whole frames, or there is no tile for the device.

    """
    tokens = staged.keys.shape[1]
    if tokens % frames:
        raise ValueError(f"frame_means: {tokens} tokens are not {frames} frames")
    tile_for(MEAN_TILES, architecture(staged.keys.device), "frame_means")
    return _frame_means(staged.keys, staged.values, staged.key_scales, staged.value_scales, frames)


@torch.library.custom_op("longtake::frame_means", mutates_args=())
def _frame_means(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None, frames: int
) -> Tensor:
    _, tokens, heads, dim = keys.shape
    means = _empty_means(keys, frames)
    tile = MEAN_TILES[architecture(keys.device)]
    _frame_means_kernel[(frames, triton.cdiv(heads * dim, tile.n), 2)](
        keys, values, means if key_scales is None else key_scales, means if value_scales is None else value_scales,
        means, tokens // frames, tokens, C=heads * dim, D=dim, INT8_KEYS=key_scales is not None,
        INT8_VALUES=value_scales is not None, BLOCK_T=tile.m, BLOCK_C=tile.n, **tile.options,
    )  # fmt: skip
    return means


@_frame_means.register_fake
def _(keys: Tensor, values: Tensor, key_scales: object, value_scales: object, frames: int) -> Tensor:
    return _empty_means(keys, frames)


def _empty_means(keys: Tensor, frames: int) -> Tensor:
    return torch.empty(frames, 2, keys.shape[2] * keys.shape[3], dtype=torch.float32, device=keys.device)


def choose_slots(queues: SlotQueues, means: Tensor, layer: int, slots: Tensor) -> None:
    """As `choose_slots_reference`, without a copy to the host.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, there is no such layer, or a mean outgrows the tile.

    """
    layers, records = queues.records.shape[:2]
    device, tested = queues.records.device, queues.rule.threshold is not None
    require_integers("choose_slots: records", queues.records, (layers, records, RECORD), device)
    require_integers("choose_slots: steps", queues.steps, (queues.rows, FIELDS), device)
    require_integers("choose_slots: slots", slots, (queues.rows, slots.shape[-1]), device)
    if not 0 <= layer < layers:
        raise ValueError(f"choose_slots: no layer {layer} in a pool of {layers}")
    tile = tile_for(CHOICE_TILES, architecture(device), "choose_slots")
    if tested:
        channels = queues.sink_means.shape[-1]
        shapes = (queues.rows * slots.shape[1], 2, channels), (layers, queues.sink_means.shape[1], 2, channels)
        for name, x, shape in zip(("means", "sink means"), (means, queues.sink_means), shapes, strict=True):
            if tuple(x.shape) != shape or x.dtype != torch.float32 or not x.is_contiguous():
                raise ValueError(f"choose_slots: {name} must be fp32 {list(shape)}; got {x.dtype} {list(x.shape)}")
        if channels > tile.n:
            raise ValueError(f"choose_slots: means of {channels} channels; its tile takes at most {tile.n}")
    threshold = queues.rule.threshold
    _choose_slots(
        queues.records, queues.sink_means, slots, queues.steps, means, queues.rule.slots,
        0.0 if threshold is None else threshold, tested, layer,
    )  # fmt: skip


@torch.library.custom_op("longtake::choose_slots", mutates_args=("records", "sink_means", "slots"))
def _choose_slots(
    records: Tensor, sink_means: Tensor, slots: Tensor, steps: Tensor, means: Tensor, sink: int, threshold: float,
    tested: bool, layer: int,
) -> None:  # fmt: skip
    rows, frames = slots.shape
    channels = sink_means.shape[-1]
    tile = CHOICE_TILES[architecture(records.device)]
    _choose_slots_kernel[(rows,)](
        records, sink_means, steps, means, slots, records.shape[1], sink_means.shape[1], threshold, layer,
        SINK=sink, TESTED=tested, FRAMES=frames, C=channels, BLOCK_C=triton.next_power_of_2(channels),
        FIELDS=FIELDS, RECORD=RECORD, CAPACITY=CAPACITY, EPS=EPS, **tile.options,
    )  # fmt: skip


@_choose_slots.register_fake
def _(*arguments: object) -> None:
    return None


def aot_cases() -> Sequence[AotCase]:
    """The real model's window of 6 with a sink of 3: tested, and with the test off; means in bf16 and INT8."""
    cases = []
    for sm in ARCHITECTURES:
        cases += [_means_case(sm, int8=False), _means_case(sm, int8=True)]
        cases += [_choice_case(sm, tested=True), _choice_case(sm, tested=False)]
    return cases


def _means_case(sm: int, *, int8: bool) -> AotCase:
    half, tile = FLOATS[torch.bfloat16], MEAN_TILES[sm]
    planes = dict.fromkeys(("p_keys", "p_values"), "*i8" if int8 else half)
    pointers = planes | dict.fromkeys(("p_key_scales", "p_value_scales", "p_means"), "*fp32")
    return AotCase(
        name=f"frame_means{'_int8' if int8 else ''}_sm{sm}",
        kernel=_frame_means_kernel,
        architecture=sm,
        tile=tile,
        arguments=pointers | {"frame_tokens": "i32", "pool_tokens": "i32"},
        constants={
            "C": 1536, "D": 128, "INT8_KEYS": int8, "INT8_VALUES": int8, "BLOCK_T": tile.m, "BLOCK_C": tile.n,
        },
        aligned=tuple(pointers),
    )  # fmt: skip


def _choice_case(sm: int, *, tested: bool) -> AotCase:
    integers = {
        "p_records": "*i32",
        "p_sink_means": "*fp32",
        "p_steps": "*i32",
        "p_means": "*fp32",
        "p_slots": "*i32",
    }
    return AotCase(
        name=f"choose_slots{'_tested' if tested else ''}_sm{sm}",
        kernel=_choose_slots_kernel,
        architecture=sm,
        tile=CHOICE_TILES[sm],
        arguments=integers | {"records": "i32", "sink_slots": "i32", "threshold": "fp32", "layer": "i32"},
        constants={
            "SINK": 3, "TESTED": tested, "FRAMES": 1, "C": 1536, "BLOCK_C": 2048, "FIELDS": FIELDS,
            "RECORD": RECORD, "CAPACITY": CAPACITY, "EPS": EPS,
        },
        aligned=("p_sink_means", "p_means"),
    )  # fmt: skip

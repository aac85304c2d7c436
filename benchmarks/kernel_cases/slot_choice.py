"""The choice of slots by the keys of a stream batch (StreamDiffusionV2), with a latent frame in each row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from torch import Tensor

from benchmarks.kernel_cases.case import Case, MakeCase, Maker, Tensors
from benchmarks.measure.counts import Work
from kernels.attention.kv_view import KVPlanes
from kernels.attention.slots import Slots
from kernels.slot_choice.choose_slots import choose_slots, frame_means
from kernels.slot_choice.copy_slots import copy_slots, copy_slots_reference
from kernels.slot_choice.slot_queue import (
    ENDS,
    LENGTH,
    RECORD,
    QueueStep,
    SinkRule,
    SlotQueues,
    choose_slots_reference,
    frame_means_reference,
)

ROWS = 4
"""Denoising steps of one session, each with a window of its own."""

WINDOW, SINK = 6, 3
"""Frames of a window, and of its sink: the published model's."""

THRESHOLD = 2.0
"""Above all similarities, so that a slot is given up in every row."""


def slot_cases(make: Maker) -> list[MakeCase]:
    """Every op between the rotation of a pass's keys and its attention."""
    return [partial(_frame_means, make), partial(_choose_slots, make), partial(_copy_slots, make)]


def _frame_means(make: Maker, sets: int) -> Case:
    def inputs() -> Tensors:
        keys, values = _staged(make)
        return keys, values

    def means(op: Callable[[KVPlanes, int], Tensor]) -> Callable[..., Tensor]:
        return lambda keys, values: op(KVPlanes(keys, values), ROWS)

    providers = {"triton": means(frame_means), "reference": means(frame_means_reference)}
    sums = 2 * ROWS * make.sizes.frame_tokens * make.sizes.dim
    return make.case(f"means of {ROWS} frames", inputs, providers, providers["reference"], sums, sets)


def _choose_slots(make: Maker, sets: int) -> Case:
    """Each set of inputs is a layer, whose sink is tested against means that no slot of it has."""
    first = _queues(make, sets)
    means = torch.randn(sets, ROWS, 2, make.sizes.dim, device=make.device)
    providers = {"triton": choose_slots, "reference": choose_slots_reference}
    moved = (2 * SINK + 2) * ROWS * make.sizes.dim * 4 + 2 * ROWS * RECORD * 4
    return Case(
        name=f"slots of {ROWS} rows chosen",
        work=Work(0, moved),
        providers={name: _chooser(op, first, means) for name, op in providers.items()},
        truth=lambda i: _chooser(choose_slots_reference, first, means)(i),
        bound=0,
        set_bytes=moved,
        device=make.device,
    )


def _queues(make: Maker, sets: int) -> SlotQueues:
    """Full windows, each of which reads one record and writes another."""
    records = torch.zeros(sets, 2 * ROWS, RECORD, dtype=torch.int32, device=make.device)
    ring = torch.arange(SINK + 1, WINDOW + 1, dtype=torch.int32, device=make.device)
    records[..., LENGTH] = len(ring)
    records[..., ENDS : ENDS + len(ring)] = ring
    steps = [_step(row, stamp) for stamp in (1, 2) for row in range(ROWS)]
    return SlotQueues(
        records,
        torch.randn(sets, ROWS * SINK, 2, make.sizes.dim, device=make.device),
        torch.tensor(steps, dtype=torch.int32, device=make.device),
        SinkRule(SINK, THRESHOLD),
    )


def _chooser(
    op: Callable[[SlotQueues, Tensor, int, Tensor], None], first: SlotQueues, means: Tensor
) -> Callable[[int], Tensors]:
    """Calls with queues of its own. Each finds the stamp of the one before, not its own, and so has to choose."""
    records, sink_means, passes = first.records.clone(), first.sink_means.clone(), count()
    slots = torch.zeros(ROWS, 1, dtype=torch.int32, device=records.device)

    def run(i: int) -> Tensors:
        steps = first.steps.chunk(2)[next(passes) % 2]
        op(SlotQueues(records, sink_means, steps, first.rule), means[i], i, slots)
        return slots, records[i, ROWS:, LENGTH:]

    return run


def _step(row: int, stamp: int) -> QueueStep:
    return QueueStep(
        read=row, write=ROWS + row, stamp=stamp, full=True, pop=True, end=0, append=0, test=True, means=row * SINK
    )


def _copy_slots(make: Maker, sets: int) -> Case:
    tokens = make.sizes.frame_tokens
    staged = [_staged(make) for _ in range(sets)]
    pools = [make.randn(2, 1, ROWS * WINDOW * tokens, make.sizes.heads, make.sizes.head_dim) for _ in range(sets)]
    starts = torch.tensor([row * WINDOW * tokens for row in range(ROWS)], dtype=torch.int32, device=make.device)
    chosen = torch.tensor([[row % WINDOW] for row in range(ROWS)], dtype=torch.int32, device=make.device)

    def run(op: Callable[[KVPlanes, KVPlanes, Slots, int], None], i: int) -> Tensors:
        op(KVPlanes(*staged[i]), KVPlanes(*pools[i]), Slots(starts, chosen), 0)
        return (pools[i],)

    providers = {"triton": copy_slots, "reference": copy_slots_reference}
    return Case(
        name=f"{ROWS} frames copied into their slots",
        work=Work(0, 2 * staged[0].nbytes),
        providers={name: partial(run, op) for name, op in providers.items()},
        truth=partial(run, copy_slots_reference),
        bound=0,
        set_bytes=2 * staged[0].nbytes,
        device=make.device,
    )


def _staged(make: Maker) -> Tensor:
    """Keys and values of the rows' frames, one behind the other."""
    return make.randn(2, 1, ROWS * make.sizes.frame_tokens, make.sizes.heads, make.sizes.head_dim)

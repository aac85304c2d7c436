"""Which slots of its window a pass's frames are written into, chosen from their keys and values.

StreamDiffusionV2 keeps, in every layer of every window, a queue of slots that are to be overwritten. A frame that
is unlike one of the sink's puts that slot in front; the ring's slots follow in the order of their age. So slots
differ by layer, and are chosen inside the pass:

    mean        of a frame's rotated keys, and of its values, over its tokens: one vector of all heads each
    similarity  of the new frame and sink slot i: (cos(key means) + cos(value means)) / 2
    test        the least similarity is below the threshold: that slot's end goes to the front of the queue
    full        the frames take the slots before the queue's first end; it goes to the back, or if it was a sink
                slot's it goes
    growing     they take the next free slots, and the end of those after them joins the queue

    records     [layers, records, RECORD] int32    a queue is a stamp, the slot chosen last, a length, CAPACITY
                                                   ends, and how many ends it has lost
    sink means  [layers, slots, 2, H * D] fp32     of the frames in the sinks' slots; zeros before they are written
    steps       [B, FIELDS] int32                  see `QueueStep`
    slots       [B, frames] int32                  what is chosen

A pass reads one record of its window and writes another, so that it can be made again. Where it finds its own
stamp in that one it has chosen before: it takes the same slots, because a sink's frame that it has overwritten
would be like the new one now.

A queue is the sink's slots, newest first, before the ring's. The ring's come back when they have been taken, and
not otherwise; the sink's pile up where passes put more of them in front than leave, as several steps of a plain
block can. A queue without room loses the oldest of those, which is the last of them to be taken, and counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention.kv_view import KVPlanes

CAPACITY = 256
"""Ends in a queue: of two windows at the least."""

STAMP, SLOT, LENGTH, ENDS = range(4)
LOST = ENDS + CAPACITY
"""Of a record: where each part begins."""

RECORD = LOST + 1

EARLIER_RECORD = 67
"""In the first release, without what is lost."""

EPS = 1e-8
"""The least length of a vector in a cosine, as `torch.nn.functional.cosine_similarity` has it."""


class QueueStep(NamedTuple):
    """What a pass does to the queue of its window, as far as it is known before: one row of `steps`.

    Args:
        read: the record to read, counted in the pool.
        write: the record to write.
        stamp: the pass's own, never 0 and never an earlier one's.
        full: the window is full; else it grows.
        pop: the queue's first end leaves its place; else the next pass finds it there.
        end: where the window grows, the end of the slots taken.
        append: where it grows, the end that joins the queue, unless that is its last; 0 for none.
        test: whether the sink is tested.
        means: where the window's sink means begin, counted in their pool.

    """

    read: int
    write: int
    stamp: int
    full: bool
    pop: bool
    end: int
    append: int
    test: bool
    means: int


FIELDS = len(QueueStep._fields)


class SinkRule(NamedTuple):
    """The sink's slots, and the similarity below which one of them is given up; None for no test."""

    slots: int
    threshold: float | None


@dataclass(frozen=True, eq=False)
class SlotQueues:
    """Queues and sink means of a pool, the steps of a batch, and the rule that its windows have in common."""

    records: Tensor
    sink_means: Tensor
    steps: Tensor
    rule: SinkRule

    @property
    def rows(self) -> int:
        """Of the batch."""
        return self.steps.shape[0]

    @property
    def no_means(self) -> Tensor:
        """Where no sink is tested, what takes the place of the frames' means."""
        return self.sink_means[0, :0]


def put_first(record: Tensor, ends: range) -> None:
    """Have slots be overwritten before all others: their `ends` go to the front of the queue in each layer.

    `record` is [layers, RECORD], and `ends` are those of all the sink's slots. The host waits for nothing.
    """
    count, device = len(ends), record.device
    first = torch.arange(ends.start, ends.stop, ends.step, dtype=record.dtype, device=device)
    queue, places = record[:, ENDS:LOST], torch.arange(CAPACITY, device=device)
    length = record[:, LENGTH : LENGTH + 1]
    lost = (length + count - CAPACITY).clamp(min=0)
    kept = ((places < length) & (queue < ends.stop)).sum(1, keepdim=True) + count - lost
    source = places - count + torch.where(places < kept, 0, lost)
    longer = queue.gather(1, source.clamp(0, CAPACITY - 1))
    longer[:, :count] = first
    queue.copy_(longer)
    record[:, LENGTH] = (length + count - lost)[:, 0]
    record[:, LOST] += lost[:, 0]


def widened(records: Tensor) -> Tensor:
    """Records of a release whose queues were shorter as they are now, [..., RECORD]; others as they are."""
    if records.shape[-1] != EARLIER_RECORD:
        return records
    return torch.nn.functional.pad(records, (0, RECORD - EARLIER_RECORD))


def frame_means_reference(staged: KVPlanes, frames: int) -> Tensor:
    """Means [frames, 2, H * D] fp32 of keys and values; `staged` holds those of so many frames, in one layer."""
    keys, values = staged.keys[0].float(), staged.values[0].float()
    if staged.key_scales is not None:
        keys = keys * staged.key_scales[0].T.unsqueeze(-1)
    if staged.value_scales is not None:
        values = values * staged.value_scales[0].T.unsqueeze(-1)
    both = torch.stack([keys.flatten(1), values.flatten(1)], dim=1)
    return both.unflatten(0, (frames, -1)).mean(dim=1)


def choose_slots_reference(queues: SlotQueues, means: Tensor, layer: int, slots: Tensor) -> None:
    """In plain Python; reads records back.

    `means` [B * frames, 2, H * D] are those of the batch's frames; of no use, and empty, where no sink is tested.
    """
    frames = slots.shape[1]
    for row, fields in enumerate(queues.steps.tolist()):
        step = QueueStep(*fields)
        record = queues.records[layer, step.write]
        if int(record[STAMP]) != step.stamp:
            read = queues.records[layer, step.read].tolist()
            weakest = None
            if step.test:
                sink = queues.sink_means[layer, step.means : step.means + queues.rule.slots]
                weakest = _weakest(sink, means[row * frames], queues.rule)
            record.copy_(torch.tensor(_next_record(read, step, weakest, queues.rule.slots, frames)))
        first = int(record[SLOT])
        slots[row] = torch.arange(first, first + frames)
        for frame in range(frames):
            if queues.rule.threshold is not None and first + frame < queues.rule.slots:
                queues.sink_means[layer, step.means + first + frame] = means[row * frames + frame]


def sink_similarity(sink: Tensor, mean: Tensor) -> Tensor:
    """Of a frame with means [2, H * D] and each of the sink's, [slots, 2, H * D]: fp32 [slots]."""
    return torch.nn.functional.cosine_similarity(sink, mean, dim=-1, eps=EPS).mean(dim=-1)


def _weakest(sink: Tensor, mean: Tensor, rule: SinkRule) -> int | None:
    """The slot of the sink to be given up, if there is one; the first of those equally unlike."""
    similarity = sink_similarity(sink, mean)
    assert rule.threshold is not None
    return int(similarity.argmin()) if float(similarity.min()) < rule.threshold else None


def _next_record(read: list[int], step: QueueStep, weakest: int | None, sink: int, frames: int) -> list[int]:
    queue = read[ENDS : ENDS + read[LENGTH]]
    if weakest is not None:
        queue.insert(0, weakest + 1)
    if step.full:
        end = queue[0]
        if step.pop:
            queue = [*queue[1:], end] if end > sink else queue[1:]
    else:
        end = step.end
        if step.append and queue[-1:] != [step.append]:
            queue.append(step.append)
    lost, of_sink = max(0, len(queue) - CAPACITY), sum(end <= sink for end in queue)
    del queue[of_sink - lost : of_sink]
    unused = [0] * (CAPACITY - len(queue))
    return [step.stamp, end - frames, len(queue), *queue, *unused, read[LOST] + lost]

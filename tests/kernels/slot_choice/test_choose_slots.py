from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import KVPlanes
from kernels.slot_choice.choose_slots import choose_slots, frame_means
from kernels.slot_choice.slot_queue import (
    CAPACITY,
    EARLIER_RECORD,
    ENDS,
    LENGTH,
    LOST,
    RECORD,
    SLOT,
    STAMP,
    QueueStep,
    SinkRule,
    SlotQueues,
    choose_slots_reference,
    frame_means_reference,
    put_first,
    widened,
)
from tests.kernels.attention.pools import Run, int8, pool, view
from tests.tolerances import assert_within

LAYERS, LAYER, CHANNELS, SINK = 2, 1, 24, 3
FRAMES, FRAME = 3, 5
STEP = QueueStep(read=0, write=1, stamp=9, full=True, pop=True, end=0, append=0, test=True, means=0)
UNLIKE = torch.arange(2.0 * CHANNELS).view(2, CHANNELS)


def queues(device: torch.device, ends: list[int], *, threshold: float | None = 0.2) -> SlotQueues:
    """Two records, the first with a queue, and a sink whose second frame is the one least like `UNLIKE`."""
    records = torch.zeros(LAYERS, 2, RECORD, dtype=torch.int32, device=device)
    records[LAYER, 0, LENGTH] = len(ends)
    records[LAYER, 0, ENDS : ENDS + len(ends)] = torch.tensor(ends, device=device)
    means = torch.stack([UNLIKE, -UNLIKE, UNLIKE]).expand(LAYERS, SINK, 2, CHANNELS).contiguous().to(device)
    return SlotQueues(records, means, torch.zeros(1, len(STEP)).int().to(device), SinkRule(SINK, threshold))


def chosen(queue: SlotQueues, step: QueueStep, mean: Tensor = UNLIKE) -> tuple[int, list[int]]:
    """The slot, and the queue afterwards."""
    device = queue.records.device
    slots = torch.full((1, 1), 77, dtype=torch.int32, device=device)
    steps = torch.tensor([list(map(int, step))], dtype=torch.int32, device=device)
    choose_slots(replace(queue, steps=steps), mean.unsqueeze(0).to(device), LAYER, slots)
    record = queue.records[LAYER, step.write].tolist()
    assert (record[STAMP], record[SLOT]) == (step.stamp, slots.item())
    return int(slots.item()), record[ENDS : ENDS + record[LENGTH]]


def test_a_full_window_gives_up_its_oldest_frame(device: torch.device) -> None:
    assert chosen(queues(device, [4, 5, 6], threshold=None), STEP) == (3, [5, 6, 4])


def test_a_sink_frame_unlike_the_new_one_goes_first_and_is_queued_no_more(device: torch.device) -> None:
    queue = queues(device, [4, 5, 6])
    assert chosen(queue, STEP) == (1, [4, 5, 6])
    assert torch.equal(queue.sink_means[LAYER, 1].cpu(), UNLIKE)


def test_a_place_that_is_not_given_up_is_found_again(device: torch.device) -> None:
    assert chosen(queues(device, [4, 5], threshold=None), STEP._replace(pop=False)) == (3, [4, 5])


def test_a_growing_window_takes_the_next_slots_and_queues_those_after_them_once(device: torch.device) -> None:
    growing = STEP._replace(full=False, end=5, append=6, test=False)
    queue = queues(device, [4, 5])
    assert chosen(queue, growing) == (4, [4, 5, 6])
    assert chosen(queue, growing._replace(read=1, write=0, stamp=10)) == (4, [4, 5, 6])


def test_a_pass_made_again_takes_the_slot_it_chose(device: torch.device) -> None:
    queue = queues(device, [4, 5, 6])
    first = chosen(queue, STEP)
    assert chosen(queue, STEP) == first, "though its sink frame is the new one by now"


def test_a_queue_without_room_loses_the_oldest_of_the_sinks_and_counts_it(device: torch.device) -> None:
    waiting, ring = [1, *[2] * (CAPACITY - 4), 3], [4, 5]
    queue = queues(device, [*waiting, *ring])
    assert chosen(queue, STEP._replace(pop=False)) == (1, [2, *waiting[:-1], *ring])
    assert queue.records[LAYER, 1, LOST] == 1


def test_a_queue_that_is_full_has_room_for_what_leaves_at_once(device: torch.device) -> None:
    full = [*[3] * (CAPACITY - 1), 4]
    queue = queues(device, full)
    assert chosen(queue, STEP) == (1, full)
    assert queue.records[LAYER, 1, LOST] == 0


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_slots_go_to_the_front_and_where_there_is_no_room_the_oldest_of_the_sinks_go(
    lost: int, device: torch.device
) -> None:
    waiting, ring = [*[2] * (CAPACITY - 8 + lost), 1, 1, 1], [4, 5]
    record = queues(device, [*waiting, *ring]).records[:, 0]
    put_first(record, range(1, 4))
    read = record[LAYER].tolist()
    assert read[ENDS : ENDS + read[LENGTH]] == [1, 2, 3, *waiting[: len(waiting) - lost], *ring]
    assert read[LOST] == lost
    assert record[0, [LENGTH, ENDS, ENDS + 1, ENDS + 2, LOST]].tolist() == [3, 1, 2, 3, 0]


def test_records_of_shorter_queues_hold_the_same(device: torch.device) -> None:
    record = queues(device, [2, 4, 5]).records[:, 0]
    assert torch.equal(widened(record[:, :EARLIER_RECORD]), record)
    assert widened(record[:, :5]).shape == (LAYERS, 5)


def random_step(draw: random.Random, row: int, number: int, frames: int, growing: bool) -> list[int]:
    """Of pass `number` over a row with two records, the window growing in its first four."""
    read = 2 * row + number % 2
    end, tested = frames * (number + 1), frames == 1 and draw.random() < 0.8
    pop = draw.random() < 0.8
    step = QueueStep(read, read ^ 1, number + 1, not growing, pop, end, end + frames, tested, row * SINK)
    return list(map(int, step))


@pytest.mark.parametrize(("frames", "waiting"), [(1, 0), (1, CAPACITY - 7), (2, 0)])
def test_the_kernel_does_what_the_reference_does_over_any_run_of_passes(
    frames: int, waiting: int, device: torch.device
) -> None:
    draw = random.Random(frames)
    rows = 2
    records = torch.zeros(LAYERS, 4, RECORD, dtype=torch.int32, device=device)
    records[:, :, LENGTH] = waiting
    records[:, :, ENDS : ENDS + waiting] = torch.tensor([draw.randint(1, SINK) for _ in range(waiting)])
    ours = SlotQueues(
        records,
        torch.zeros(LAYERS, rows * SINK, 2, CHANNELS, device=device),
        records[0, :1, :9],
        SinkRule(SINK, 0.2),
    )
    theirs = replace(ours, records=records.clone(), sink_means=ours.sink_means.clone())
    slots = torch.zeros(2, rows, frames, dtype=torch.int32, device=device)
    for number in range(60):
        growing, again = number < 4, number % 7 == 6
        if not again:
            steps = torch.tensor([random_step(draw, row, number, frames, growing) for row in range(rows)]).int()
            steps = steps.to(device)
        means = torch.randn(rows * frames, 2, CHANNELS, device=device)
        choose_slots(replace(ours, steps=steps), means, LAYER, slots[0])
        choose_slots_reference(replace(theirs, steps=steps), means, LAYER, slots[1])
        assert torch.equal(slots[0], slots[1])
        assert torch.equal(ours.records, theirs.records)
        assert torch.equal(ours.sink_means, theirs.sink_means)
    assert (int(ours.records[LAYER, :, LOST].max()) > 0) == (waiting > 0)


@pytest.mark.parametrize("in_int8", [False, True], ids=["plain", "INT8"])
def test_means_are_those_of_whole_frames(in_int8: bool, device: torch.device) -> None:
    runs = [Run(0, FRAMES * FRAME)]
    planes = view(int8(pool(runs, tokens=FRAMES * FRAME), keys=in_int8, values=in_int8), runs, device).planes
    staged = KVPlanes(**{name: x[:1].clone() for name, x in vars(planes).items() if x is not None})
    assert_within("frame_means", frame_means(staged, FRAMES), frame_means_reference(staged, FRAMES))


def test_the_operators_are_registered_for_graphs(device: torch.device) -> None:
    queue = queues(device, [4, 5, 6])
    planes = torch.randn(1, FRAMES * FRAME, 2, 16, device=device)
    torch.library.opcheck(torch.ops.longtake.frame_means.default, (planes, planes, None, None, FRAMES))
    slots = torch.zeros(1, 1, dtype=torch.int32, device=device)
    arguments = (
        queue.records,
        queue.sink_means,
        slots,
        queue.steps,
        UNLIKE[None].to(device),
        SINK,
        0.2,
        True,
        LAYER,
    )
    torch.library.opcheck(torch.ops.longtake.choose_slots.default, arguments)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    queue, slots = queues(device, [4]), torch.zeros(1, 1, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="no layer"):
        choose_slots(queue, UNLIKE[None].to(device), LAYERS, slots)
    with pytest.raises(ValueError, match="means must be fp32"):
        choose_slots(queue, UNLIKE.to(device), LAYER, slots)
    with pytest.raises(ValueError, match="not 2 frames"):
        frame_means(pool([Run(0, 1)], tokens=5), 2)

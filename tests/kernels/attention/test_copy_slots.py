from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.copy_slots import copy_slots, copy_slots_reference
from kernels.attention.kv_view import NO_SLOT, KVPlanes
from kernels.attention.slots import Slots
from tests.kernels.attention.pools import LAYERS, Run, int8, pool, view

RUNS = [Run(0, 40), Run(50, 20), Run(100, 60)]
FRAME = 5
"""Tokens."""


def slots(start: Sequence[int], mapping: object, device: torch.device) -> Slots:
    return Slots(*(torch.tensor(x, dtype=torch.int32, device=device) for x in (start, mapping)))


def planes_on(device: torch.device, *, keys: bool = False, values: bool = False) -> KVPlanes:
    """With keys, or values, in INT8."""
    return view(int8(pool(RUNS), keys=keys, values=values), RUNS, device).planes


def tensors(planes: KVPlanes) -> dict[str, Tensor]:
    return {name: x for name, x in vars(planes).items() if x is not None}


def copied(planes: KVPlanes) -> KVPlanes:
    return KVPlanes(**{name: x.clone() for name, x in tensors(planes).items()})


def assert_equal(ours: KVPlanes, theirs: KVPlanes) -> None:
    for mine, other in zip(tensors(ours).values(), tensors(theirs).values(), strict=True):
        assert torch.equal(mine.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize(
    ("keys", "values"), [(False, False), (True, False), (True, True)], ids=["plain", "INT8 keys", "all INT8"]
)
@pytest.mark.parametrize("layered", [False, True], ids=["alike in all layers", "by layer"])
def test_staged_frames_arrive_in_the_slots_chosen_for_them(
    keys: bool, values: bool, layered: bool, device: torch.device
) -> None:
    planes = planes_on(device, keys=keys, values=values)
    expected, before = copied(planes), copied(planes)
    source = slots([50, 50], [[0, 1], [2, 3]], device)
    there = [[7, NO_SLOT], [0, 11]]
    target = slots([0, 100], [[[1, 1], [1, 1]], there] if layered else there, device)
    copy_slots(planes, source, target, 1, FRAME)
    copy_slots_reference(expected, source, target, 1, FRAME)
    assert_equal(planes, expected)
    for begin, end in ((50, 35), (60, 100), (65, 155)):
        kept, arrived = before.keys[1, begin : begin + FRAME], planes.keys[1, end : end + FRAME]
        assert torch.equal(arrived, kept)
        if before.value_scales is not None and planes.value_scales is not None:
            kept, arrived = (
                before.value_scales[1, :, begin:][:, :FRAME],
                planes.value_scales[1, :, end:][:, :FRAME],
            )
            assert torch.equal(arrived, kept)
    assert torch.equal(planes.keys[0].nan_to_num(7), before.keys[0].nan_to_num(7))


def test_the_operator_is_registered_for_graphs(device: torch.device) -> None:
    planes, here = planes_on(device), slots([50], [[0, 1]], device)
    there = slots([0], [[3, 4]], device)
    keys, values = planes.keys.nan_to_num(), planes.values.nan_to_num()
    arguments = (keys, values, None, None, here.start, here.mapping, there.start, there.mapping, 0, FRAME)
    torch.library.opcheck(torch.ops.longtake.copy_slots.default, arguments)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    planes, here = planes_on(device), slots([50], [[0, 1]], device)
    with pytest.raises(ValueError, match=r"slots .* do not fit 1 rows of 2 frames"):
        copy_slots(planes, here, slots([0, 1], [[3, 4]], device), 0, FRAME)
    with pytest.raises(ValueError, match="contiguous int32"):
        copy_slots(planes, here, replace(here, mapping=here.mapping.long()), 0, FRAME)
    with pytest.raises(ValueError, match="no layer"):
        copy_slots(planes, here, here, LAYERS, FRAME)

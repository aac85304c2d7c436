from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import NO_SLOT, KVPlanes
from kernels.attention.slots import Slots
from kernels.slot_choice.copy_slots import copy_slots, copy_slots_reference
from tests.kernels.attention.pools import LAYERS, Run, int8, pool, view

RUNS = [Run(0, 40), Run(50, 20), Run(100, 60)]
FRAME = 5
"""Tokens."""


def slots(start: Sequence[int], mapping: object, device: torch.device) -> Slots:
    return Slots(*(torch.tensor(x, dtype=torch.int32, device=device) for x in (start, mapping)))


def planes_on(device: torch.device, *, keys: bool = False, values: bool = False) -> KVPlanes:
    """With keys, or values, in INT8."""
    return view(int8(pool(RUNS), keys=keys, values=values), RUNS, device).planes


def staging(device: torch.device, *, keys: bool = False, values: bool = False) -> KVPlanes:
    """One layer with four frames in it."""
    tokens = 4 * FRAME
    here = view(
        int8(pool([Run(0, tokens)], tokens=tokens), keys=keys, values=values), [Run(0, tokens)], device
    ).planes
    return KVPlanes(**{name: x[:1].clone() for name, x in tensors(here).items()})


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
    planes, staged = planes_on(device, keys=keys, values=values), staging(device, keys=keys, values=values)
    expected, before = copied(planes), copied(planes)
    there = [[7, NO_SLOT], [0, 11]]
    target = slots([0, 100], [[[1, 1], [1, 1]], there] if layered else there, device)
    copy_slots(staged, planes, target, 1)
    copy_slots_reference(staged, expected, target, 1)
    assert_equal(planes, expected)
    for frame, end in ((0, 35), (2, 100), (3, 155)):
        for name, kept in tensors(staged).items():
            token_dim = 1 if name.endswith("scales") else 0
            arrived = tensors(planes)[name][1].narrow(token_dim, end, FRAME)
            assert torch.equal(arrived, kept[0].narrow(token_dim, frame * FRAME, FRAME))
    assert torch.equal(planes.keys[0].nan_to_num(7), before.keys[0].nan_to_num(7))


def test_the_operator_is_registered_for_graphs(device: torch.device) -> None:
    planes, staged = planes_on(device), staging(device)
    there = slots([0, 40], [[3, 4], [1, 2]], device)
    keys, values = planes.keys.nan_to_num(), planes.values.nan_to_num()
    arguments = (staged.keys, staged.values, None, None, keys, values, None, None, there.start, there.mapping, 0)
    torch.library.opcheck(torch.ops.longtake.copy_slots.default, arguments)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    planes, staged = planes_on(device), staging(device)
    there = slots([0, 100], [[3, 4], [1, 2]], device)
    with pytest.raises(ValueError, match="are not 3 frames"):
        copy_slots(staged, planes, slots([0], [[3, 4, 5]], device), 0)
    with pytest.raises(ValueError, match="contiguous int32"):
        copy_slots(staged, planes, replace(there, mapping=there.mapping.long()), 0)
    with pytest.raises(ValueError, match="no layer"):
        copy_slots(staged, planes, there, LAYERS)

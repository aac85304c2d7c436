from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import KVPlanes
from kernels.attention.rope import frame_freqs
from kernels.attention.rotate_slots import rotate_slots, rotate_slots_reference
from tests.kernels.attention.test_qk_norm_rope import GRID, Pass, assert_same
from tests.tolerances import assert_within

DIM, TOKENS = 32, GRID[0] * GRID[1]


def _written(device: torch.device, dtype: torch.dtype, *, int8: bool = False) -> tuple[Pass, KVPlanes, Tensor]:
    """Two frames in slots 0 and 1 of a run at 4, with their raw keys in a run at 2."""
    made = Pass.of([[0, 1]], [4], 2, DIM, device).to(dtype)
    planes, raw = made.planes(int8=int8), made.raw([2], [[0, 1]])
    for layer in range(2):
        made.run(planes, raw, layer=layer)
    return made, planes, raw.plane


def _rotate(planes: KVPlanes, raw: Tensor, positions: list[int], *, reference: bool = False) -> None:
    device = planes.keys.device
    slots, raw_slots = (
        torch.tensor([start, start + TOKENS], dtype=torch.int32, device=device) for start in (4, 2)
    )
    op = rotate_slots_reference if reference else rotate_slots
    op(planes, raw, frame_freqs(positions, DIM).to(device), slots, raw_slots, TOKENS)


@pytest.mark.parametrize("int8", [False, True], ids=["keys as they are", "INT8 keys"])
def test_slots_are_turned_as_if_they_were_written_at_the_new_positions(int8: bool, device: torch.device) -> None:
    made, planes, raw = _written(device, torch.float32, int8=int8)
    there = replace(made, freqs=replace(made.freqs, frame=frame_freqs([70, 71], DIM)[None].to(device)))
    expected = made.planes(int8=int8)
    for layer in range(2):
        there.run(expected, made.raw([2], [[0, 1]]), layer=layer)
    _rotate(planes, raw, [70, 71])
    if int8:
        assert planes.key_scales is not None
        assert expected.key_scales is not None
        assert_within("qk_norm_rope", planes.key_scales.nan_to_num(), expected.key_scales.nan_to_num())
        assert int((planes.keys.int() - expected.keys.int()).abs().max()) <= 1
    else:
        assert_same(planes.keys, expected.keys)


@pytest.mark.parametrize("int8", [False, True], ids=["keys as they are", "INT8 keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_kernel_does_as_its_reference(int8: bool, dtype: torch.dtype, device: torch.device) -> None:
    _, planes, raw = _written(device, dtype, int8=int8)
    expected = replace(planes, keys=planes.keys.clone())
    _rotate(planes, raw, [5, 10_000_000])
    _rotate(expected, raw, [5, 10_000_000], reference=True)
    if int8:
        assert int((planes.keys.int() - expected.keys.int()).abs().max()) <= 1
    else:
        assert_same(planes.keys, expected.keys.float())


def test_doing_it_again_changes_nothing(device: torch.device) -> None:
    _, planes, raw = _written(device, torch.float32)
    _rotate(planes, raw, [70, 71])
    once = planes.keys.clone()
    for position in (3, 10_000, 70):
        _rotate(planes, raw, [position, position + 1])
    assert torch.equal(planes.keys.nan_to_num(), once.nan_to_num())


def test_a_pool_all_in_int8_is_turned_by_its_keys_alone(device: torch.device) -> None:
    made = Pass.of([[0, 1]], [4], 2, DIM, device).to(torch.float16)
    raw = made.raw([2], [[0, 1]])
    planes = made.planes(int8=True, int8_values=True)
    for layer in range(2):
        made.run(planes, raw, layer=layer)
    expected = replace(planes, keys=planes.keys.clone())
    kept = planes.values.clone()
    _rotate(planes, raw.plane, [5, 900])
    _rotate(expected, raw.plane, [5, 900], reference=True)
    assert int((planes.keys.int() - expected.keys.int()).abs().max()) <= 1
    assert torch.equal(planes.values, kept)


def test_other_tokens_and_other_channels_stay_as_they_are(device: torch.device) -> None:
    _, planes, raw = _written(device, torch.float32)
    planes.keys[:, 0], planes.keys[:, 4 + 2 * TOKENS :] = 7.0, 8.0
    before = planes.keys.clone()
    _rotate(planes, raw, [70, 71])
    run, channels = slice(4, 4 + 2 * TOKENS), raw.shape[-1]
    assert not torch.equal(planes.keys[:, run, :, :channels], before[:, run, :, :channels])
    planes.keys[:, run, :, :channels] = before[:, run, :, :channels]
    assert torch.equal(planes.keys.nan_to_num(), before.nan_to_num())


def test_the_operator_is_registered_for_graphs(device: torch.device) -> None:
    _, planes, raw = _written(device, torch.float32)
    keys, slots = planes.keys.nan_to_num(), torch.tensor([4], dtype=torch.int32, device=device)
    freqs = torch.view_as_real(frame_freqs([3], DIM).to(device))
    arguments = (keys, None, raw.nan_to_num(), freqs, slots, slots, TOKENS)
    torch.library.opcheck(torch.ops.longtake.rotate_slots.default, arguments)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    _, planes, raw = _written(device, torch.float32)
    with pytest.raises(ValueError, match="raw keys must be contiguous"):
        _rotate(planes, raw[:1].contiguous(), [1, 2])
    freqs, slots = frame_freqs([1, 2], DIM).to(device), torch.zeros(2, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="freqs must be contiguous complex64"):
        rotate_slots(planes, raw, freqs.to(torch.complex128), slots, slots, TOKENS)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import NO_SLOT, KVPlanes
from kernels.attention.qk_norm_rope import qk_norm_rope, qk_norm_rope_reference, write_kv, write_kv_reference
from kernels.attention.rope import frame_freqs, frame_pairs, spatial_freqs
from kernels.attention.slots import RawKeys, RopeFreqs, Slots
from kernels.quantize import quantize_rows
from tests.kernels.attention.pools import random
from tests.tolerances import assert_within

EPS = 1e-6
LAYERS, GRID, TOKENS = 2, (1, 3), 40
"""Three tokens of a frame; a pool of 40 tokens."""


@dataclass(frozen=True)
class Pass:
    """What a pass hands over: projections that lie side by side, and where their keys and values go."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor
    k_weight: Tensor
    freqs: RopeFreqs
    slots: Slots

    @classmethod
    def of(
        cls, slots: Sequence[Sequence[int]], starts: Sequence[int], heads: int, dim: int, device: torch.device
    ) -> Pass:
        """Rows of frames that go to `slots` of runs at `starts`; each row at positions of its own."""
        mapping = torch.tensor(slots, dtype=torch.int32, device=device)
        rows, frames = mapping.shape[-2:]
        q, k, v = random(rows, frames * GRID[0] * GRID[1], 3 * heads * dim).to(device).split(heads * dim, dim=-1)
        q_weight, k_weight = random(2, heads * dim).to(device)
        positions = [10 ** (row + 1) + frame for row in range(rows) for frame in range(frames)]
        frame = frame_freqs(positions, dim).view(rows, frames, -1).to(device)
        freqs = RopeFreqs(frame, spatial_freqs(*GRID, dim).to(device))
        start = torch.tensor(starts, dtype=torch.int32, device=device)
        return cls(q, k, v, q_weight, k_weight, freqs, Slots(start, mapping))

    def to(self, dtype: torch.dtype) -> Pass:
        names = ("q", "k", "v", "q_weight", "k_weight")
        return replace(self, **{name: vars(self)[name].to(dtype) for name in names})

    def planes(self, *, int8: bool = False, int8_values: bool = False) -> KVPlanes:
        """A pool that nobody has written."""
        dim = self.freqs.head_dim
        shape = (LAYERS, TOKENS, self.v.shape[2] // dim, dim)
        keys, values = (
            torch.empty(shape, dtype=torch.int8 if quantized else self.v.dtype, device=self.v.device)
            for quantized in (int8, int8_values)
        )
        key_scales, value_scales = (
            torch.empty(LAYERS, shape[2], TOKENS, device=self.v.device) if quantized else None
            for quantized in (int8, int8_values)
        )
        return KVPlanes(keys, values, key_scales, value_scales)

    def raw(self, starts: Sequence[int], slots: Sequence[Sequence[int]]) -> RawKeys:
        """A raw plane that nobody has written, and where these frames go in it."""
        dim = self.freqs.head_dim
        shape = (LAYERS, TOKENS, self.v.shape[2] // dim, 2 * frame_pairs(dim))
        start, mapping = (torch.tensor(x, dtype=torch.int32, device=self.v.device) for x in (starts, slots))
        plane = torch.empty(shape, dtype=self.v.dtype, device=self.v.device)
        return RawKeys(plane, Slots(start, mapping))

    def run(
        self, planes: KVPlanes, raw: RawKeys | None = None, *, layer: int = 1, reference: bool = False
    ) -> Tensor:
        op = qk_norm_rope_reference if reference else qk_norm_rope
        return op(
            self.q, self.k, self.v, self.q_weight, self.k_weight, self.freqs, planes, self.slots, raw, layer, EPS
        )


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Raise AssertionError unless the same tokens are written, and hold the same."""
    assert torch.equal(actual.isnan(), expected.isnan())
    assert_within("qk_norm_rope", actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("slots", "starts", "heads", "dim"),
    [([[3]], [5], 3, 32), ([[0, 2], [3, 1]], [2, 25], 2, 24), ([[1], [0]], [12, 0], 12, 128)],
    ids=["one row", "two frames of two rows", "real heads"],
)
def test_queries_are_turned_and_keys_and_values_written(
    slots: list[list[int]], starts: list[int], heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    half = Pass.of(slots, starts, heads, dim, device).to(dtype)
    whole, planes = half.to(torch.float32), half.planes()
    expected_planes = whole.planes()
    queries, expected = half.run(planes), whole.run(expected_planes, reference=True)
    assert queries.dtype == dtype
    assert_within("qk_norm_rope", queries, expected)
    assert_same(planes.keys, expected_planes.keys)
    assert_same(planes.values, expected_planes.values)
    assert bool(planes.keys[0].isnan().all())


def test_a_frame_without_a_slot_is_not_written(device: torch.device) -> None:
    made = Pass.of([[NO_SLOT, 2], [1, NO_SLOT]], [3, 20], 2, 16, device)
    planes, expected = made.planes(), made.planes()
    assert_within("qk_norm_rope", made.run(planes), made.run(expected, reference=True))
    assert_same(planes.keys, expected.keys)
    assert int((~planes.keys[1, :, 0, 0].isnan()).sum()) == 2 * GRID[1]


def test_slots_may_differ_by_layer(device: torch.device) -> None:
    made = Pass.of([[1], [0]], [3, 20], 2, 16, device)
    by_layer = torch.stack([made.slots.mapping, made.slots.mapping + 2])
    layered = replace(made, slots=Slots(made.slots.start, by_layer))
    shifted = replace(made, slots=Slots(made.slots.start, made.slots.mapping + 2))
    planes, expected = made.planes(), made.planes()
    layered.run(planes, layer=1)
    shifted.run(expected, layer=1)
    assert torch.equal(planes.keys.nan_to_num(), expected.keys.nan_to_num())


@pytest.mark.parametrize("int8", [False, True], ids=["keys as they are", "INT8 keys"])
def test_raw_keys_are_kept_where_they_are_asked_for(int8: bool, device: torch.device) -> None:
    made = Pass.of([[0, 2], [1, 3]], [0, 20], 2, 32, device)
    planes, expected = made.planes(int8=int8), made.planes(int8=int8)
    raw, expected_raw = (made.raw([4, 30], [[0, NO_SLOT], [NO_SLOT, 1]]) for _ in range(2))
    made.run(planes, raw)
    made.run(expected, expected_raw, reference=True)
    assert_same(raw.plane, expected_raw.plane)
    assert int((~raw.plane[1, :, 0, 0].isnan()).sum()) == 2 * GRID[1]
    assert_same(planes.values, expected.values)
    if planes.key_scales is not None and expected.key_scales is not None:
        assert_same(planes.key_scales, expected.key_scales)
        assert int((planes.keys.int() - expected.keys.int()).abs().max()) <= 1


@pytest.mark.parametrize("int8", [False, True], ids=["keys as they are", "INT8 keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("queries", [True, False], ids=["with queries", "without"])
def test_values_are_rounded_to_int8_head_by_head(
    int8: bool, dtype: torch.dtype, queries: bool, device: torch.device
) -> None:
    made = Pass.of([[0, NO_SLOT], [1, 3]], [0, 20], 3, 32, device).to(dtype)
    made.v[:, :, :32] *= 1000
    planes, expected = (made.planes(int8=int8, int8_values=True) for _ in range(2))
    if queries:
        made.run(planes)
    else:
        write_kv(made.k, made.v, made.k_weight, made.freqs, planes, made.slots, None, 1, EPS)
    made.run(expected, reference=True)
    assert planes.value_scales is not None
    assert expected.value_scales is not None
    assert torch.equal(planes.values, expected.values)
    assert torch.equal(planes.value_scales.nan_to_num(), expected.value_scales.nan_to_num())
    assert int((~planes.value_scales[1].isnan()).sum()) == 3 * 3 * GRID[1]
    written, token = quantize_rows(made.v[1, 0].view(3, 32)), 20 + GRID[1]
    assert torch.equal(planes.values[1, token], written[0])
    assert torch.equal(planes.value_scales[1, :, token], written[1])


def test_keys_and_values_can_be_written_without_queries(device: torch.device) -> None:
    made = Pass.of([[0, 2]], [7], 2, 32, device)
    planes, expected = made.planes(), made.planes()
    write_kv(made.k, made.v, made.k_weight, made.freqs, planes, made.slots, None, 0, EPS)
    write_kv_reference(made.k, made.v, made.k_weight, made.freqs, expected, made.slots, None, 0, EPS)
    assert_same(planes.keys, expected.keys)
    assert_same(planes.values, expected.values)


def test_a_far_position_turns_as_exactly_as_a_near_one(device: torch.device) -> None:
    """Angles of frame 10 million, in fp64 on the host, against those computed in integers."""
    dim, position = 24, 10_000_000
    exact = torch.tensor([position * 10000 ** -(j / frame_pairs(dim)) for j in range(frame_pairs(dim))]).double()
    assert torch.allclose(frame_freqs([position], dim)[0].angle().double().cos(), exact.cos(), atol=1e-6)


def test_the_operator_is_registered_for_graphs(device: torch.device) -> None:
    made = Pass.of([[1], [0]], [12, 0], 2, 16, device)
    planes, raw = made.planes(), made.raw([0, 3], [[0], [NO_SLOT]])
    for plane in (planes.keys, planes.values, raw.plane):
        plane.zero_()
    frame, spatial = torch.view_as_real(made.freqs.frame), torch.view_as_real(made.freqs.spatial)
    weights = (made.q_weight, made.k_weight)
    slots = (made.slots.start, made.slots.mapping)
    torch.library.opcheck(
        torch.ops.longtake.qk_norm_rope.default,
        (made.q, made.k, made.v, *weights, frame, spatial, planes.keys, planes.values, None, None, *slots,
         raw.plane, raw.slots.start, raw.slots.mapping, 1, EPS),
    )  # fmt: skip


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    made = Pass.of([[1], [0]], [12, 0], 2, 16, device)
    planes = made.planes()
    with pytest.raises(ValueError, match="no layer 2"):
        made.run(planes, layer=2)
    with pytest.raises(ValueError, match=r"slots .* do not fit 2 rows"):
        replace(made, slots=Slots(made.slots.start[:1], made.slots.mapping)).run(planes)
    with pytest.raises(ValueError, match="contiguous int32"):
        replace(made, slots=Slots(made.slots.start.long(), made.slots.mapping)).run(planes)
    with pytest.raises(ValueError, match="do not turn 2 rows"):
        replace(made, freqs=replace(made.freqs, frame=made.freqs.frame[:1])).run(planes)
    raw = made.raw([0, 0], [[0], [0]])
    with pytest.raises(ValueError, match=r"raw keys must be contiguous torch\.float32 \[2, tokens, 2, 8\]"):
        made.run(planes, replace(raw, plane=raw.plane[..., :-2].contiguous()))
    with pytest.raises(ValueError, match=r"keys in torch\.float16"):
        made.run(replace(planes, keys=planes.keys.half()))

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engines.cache.kv_pool import KVRun
from engines.cache.window import WindowLayout
from engines.config.networks import TransformerConfig
from engines.wan.layers import Attention
from kernels.attention.kv_view import NO_SLOT, KVView, KVViewTable
from kernels.attention.qk_norm_rope import (
    Queries,
    qk_norm_rope,
    qk_norm_rope_reference,
    write_kv,
    write_kv_reference,
)
from kernels.attention.rope import Turns, apply_rope
from tests.tolerances import assert_within

EPS = 1e-6
LAYERS, SLOTS, TOKENS = 2, 4, 3
"""A slab: 4 slots of 3 tokens."""


@dataclass(frozen=True)
class Pass:
    """What a pass hands over: projections that lie side by side, and where their keys and values go."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor
    k_weight: Tensor
    turns: Turns
    slot_mapping: Tensor

    @classmethod
    def of(cls, slot_mapping: list[list[int]], heads: int, dim: int, device: torch.device) -> Pass:
        generator = torch.Generator().manual_seed(8)
        batch, tokens, channels = len(slot_mapping), len(slot_mapping[0]) * TOKENS, heads * dim
        q, k, v = torch.randn(batch, tokens, 3 * channels, generator=generator).to(device).split(channels, dim=-1)
        q_weight, k_weight = torch.randn(2, channels, generator=generator).to(device)
        angles = torch.randn(3, batch, tokens, dim // 2, generator=generator).to(device)
        keys, queries, sink = torch.polar(torch.ones_like(angles), angles)
        where = torch.tensor(slot_mapping, dtype=torch.int32, device=device)
        return cls(q, k, v, q_weight, k_weight, Turns(keys, queries, sink), where)

    def to(self, dtype: torch.dtype) -> Pass:
        names = ("q", "k", "v", "q_weight", "k_weight")
        return replace(self, **{name: vars(self)[name].to(dtype) for name in names})

    def slabs(self, dtype: torch.dtype, *, int8: bool = False) -> KVViewTable:
        """Slabs that nobody has written."""
        batch, _, channels = self.v.shape
        dim = 2 * self.turns.keys.shape[-1]
        shape, device = (LAYERS, SLOTS, TOKENS, channels // dim, dim), self.v.device
        scales = (LAYERS, channels // dim, SLOTS, TOKENS)
        lent = [
            KVView(
                torch.empty(shape, dtype=torch.int8 if int8 else dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
                filled=SLOTS * TOKENS,
                key_scales=torch.empty(scales, device=device) if int8 else None,
            )
            for _ in range(batch)
        ]
        return KVViewTable(lent, device)

    def run(self, table: KVViewTable, layer: int = 1, *, reference: bool = False) -> Queries:
        op = qk_norm_rope_reference if reference else qk_norm_rope
        return op(
            self.q, self.k, self.v, self.q_weight, self.k_weight, self.turns, table, self.slot_mapping, layer, EPS
        )


def kept(table: KVViewTable) -> tuple[Tensor, Tensor]:
    """All keys and values of all streams; NaN where nobody wrote."""
    return torch.stack([x.keys for x in table.lent]), torch.stack([x.values for x in table.lent])


def assert_same_slabs(actual: KVViewTable, reference: KVViewTable) -> None:
    """Raise AssertionError unless the same tokens are written, and hold the same."""
    for ours, theirs in zip(kept(actual), kept(reference), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert_within("qk_norm_rope", ours.nan_to_num(), theirs.nan_to_num())


def test_the_reference_is_what_a_streams_memory_does() -> None:
    made = Pass.of([[6, 0]], 3, 32, torch.device("cpu"))
    attention = Attention(TransformerConfig(dim=96, layers=LAYERS, heads=3, ffn_dim=8, eps=EPS))
    made = replace(made, q_weight=attention.norm_q.weight.detach(), k_weight=attention.norm_k.weight.detach())
    slab = KVRun(WindowLayout(LAYERS, 3, 32, TOKENS, 1, SLOTS), made.v.device, torch.float32)
    table = KVViewTable(
        [KVView(torch.empty_like(slab.keys), torch.empty_like(slab.values), filled=12)], made.v.device
    )
    with torch.no_grad():
        keys = apply_rope(attention.keys(made.k), made.turns.keys)
        slab.write(1, (2, 0), keys[0], attention.heads_of(made.v)[0])
        queries = made.run(table, reference=True)
        assert torch.equal(queries.stream, apply_rope(attention.queries(made.q), made.turns.queries))
    torch.testing.assert_close(table.lent[0].keys, slab.keys, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(table.lent[0].values, slab.values, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("slot_mapping", "heads", "dim"),
    [([[9]], 3, 32), ([[0, 6], [9, 3]], 2, 24), ([[3], [0]], 12, 128)],
    ids=["one stream, last slot", "two blocks", "real heads"],
)
def test_queries_are_turned_and_keys_and_values_kept(
    slot_mapping: list[list[int]], heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    half = Pass.of(slot_mapping, heads, dim, device).to(dtype)
    whole, table = half.to(torch.float32), half.slabs(dtype)
    expected_table = whole.slabs(torch.float32)
    queries, expected = half.run(table), whole.run(expected_table, reference=True)
    assert queries.sink is not None
    assert expected.sink is not None
    assert_within("qk_norm_rope", queries.stream, expected.stream)
    assert_within("qk_norm_rope", queries.sink, expected.sink)
    assert_same_slabs(table, expected_table)


def test_there_are_no_sink_queries_where_they_would_be_the_same(device: torch.device) -> None:
    made = Pass.of([[0]], 3, 32, device)
    alone = replace(made, turns=made.turns._replace(sink_queries=None))
    queries = alone.run(made.slabs(torch.float32))
    assert queries.sink is None
    assert torch.equal(queries.stream, made.run(made.slabs(torch.float32)).stream)


def test_a_frozen_block_keeps_what_its_slot_has(device: torch.device) -> None:
    made = Pass.of([[NO_SLOT, 6], [NO_SLOT, NO_SLOT]], 3, 32, device)
    table, expected = made.slabs(torch.float32), made.slabs(torch.float32)
    made.run(table)
    made.run(expected, reference=True)
    assert_same_slabs(table, expected)
    assert table.lent[1].keys.isnan().all()


def test_a_pass_for_its_keys_and_values_writes_what_a_full_pass_does(device: torch.device) -> None:
    made = Pass.of([[0, 6], [9, 3]], 3, 32, device)
    table, full = made.slabs(torch.float32), made.slabs(torch.float32)
    write_kv(made.k, made.v, made.k_weight, made.turns.keys, table, made.slot_mapping, 0, EPS)
    made.run(full, layer=0)
    for ours, theirs in zip(kept(table), kept(full), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, equal_nan=True)


def test_int8_keys_come_with_a_scale_for_each_head_of_a_token(device: torch.device) -> None:
    made = Pass.of([[0, 6], [9, NO_SLOT]], 3, 32, device)
    table, expected = made.slabs(torch.float32, int8=True), made.slabs(torch.float32, int8=True)
    write_kv(made.k, made.v, made.k_weight, made.turns.keys, table, made.slot_mapping, 1, EPS)
    write_kv_reference(made.k, made.v, made.k_weight, made.turns.keys, expected, made.slot_mapping, 1, EPS)
    (keys, values), (expected_keys, expected_values) = kept(table), kept(expected)
    assert (keys.int() - expected_keys.int()).abs().max() <= 1
    assert (keys != expected_keys).float().mean() < 1e-3
    torch.testing.assert_close(values, expected_values, atol=0, rtol=0, equal_nan=True)
    for ours, theirs in zip(table.lent, expected.lent, strict=True):
        torch.testing.assert_close(ours.key_scales, theirs.key_scales, equal_nan=True)


def test_int8_keys_lose_half_a_level(device: torch.device) -> None:
    made = Pass.of([[3]], 3, 32, device)
    table, exact = made.slabs(torch.float32, int8=True), made.slabs(torch.float32)
    made.run(table)
    made.run(exact)
    lent = table.lent[0]
    assert lent.key_scales is not None
    scales = lent.key_scales[1, :, 1].T.unsqueeze(-1)
    error = lent.keys[1, 1] * scales - exact.lent[0].keys[1, 1]
    assert (error.abs() <= 0.501 * scales).all()


def test_a_slab_lent_later_gets_the_next_pass(device: torch.device) -> None:
    made = Pass.of([[0]], 3, 32, device)
    table = made.slabs(torch.float32)
    first, second = table.lent[0], made.slabs(torch.float32).lent[0]
    table.lend(0, second)
    made.run(table)
    assert first.keys.isnan().all()
    assert not second.keys[1, 0].isnan().any()


def test_a_layer_that_no_slab_has_is_refused(device: torch.device) -> None:
    made = Pass.of([[0]], 3, 32, device)
    with pytest.raises(ValueError, match=r"qk_norm_rope: layer 2 of slabs with \[2\] layers"):
        made.run(made.slabs(torch.float32), layer=2)


def test_places_for_other_streams_are_refused(device: torch.device) -> None:
    made = Pass.of([[0], [3]], 3, 32, device)
    with pytest.raises(ValueError, match=r"2 streams of 3 tokens; 2 slabs and slot_mapping \[1, 1\]"):
        replace(made, slot_mapping=made.slot_mapping[:1]).run(made.slabs(torch.float32))


def test_slabs_of_another_dtype_are_refused(device: torch.device) -> None:
    made = Pass.of([[0]], 3, 32, device)
    with pytest.raises(
        ValueError, match=r"slabs hold \[3, 32\] torch\.float16 .* a token has \[3, 32\] torch\.float32"
    ):
        made.run(made.slabs(torch.float16))


def test_keys_of_another_dtype_are_refused(device: torch.device) -> None:
    made = Pass.of([[0]], 3, 32, device)
    lent = made.slabs(torch.float32).lent[0]
    table = KVViewTable([replace(lent, keys=lent.keys.half())], device)
    with pytest.raises(ValueError, match=r"keys are kept as torch\.float16; it writes torch\.float32 or INT8"):
        made.run(table)


def test_turns_for_other_tokens_are_refused(device: torch.device) -> None:
    made = Pass.of([[0]], 3, 32, device)
    short = made.turns._replace(queries=made.turns.queries[:, :2].contiguous())
    with pytest.raises(ValueError, match=r"turns for queries must be contiguous complex64 \[1, 3, D / 2\]"):
        replace(made, turns=short).run(made.slabs(torch.float32))


def test_heads_beyond_the_tile_are_refused(device: torch.device) -> None:
    made = Pass.of([[0]], 17, 128, device)
    with pytest.raises(ValueError, match="17 heads of 128 channels; its tile takes at most 2048"):
        made.run(made.slabs(torch.float32))

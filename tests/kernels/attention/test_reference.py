from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import kernels.attention.reference
from kernels.attention.reference import attend_two_reference, prompt_attention, slab_attention


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _softmax_attention(scores: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("hts,shd->thd", scores.softmax(-1), values)


@pytest.mark.parametrize("tokens", [1, 7, 64, 129])
@pytest.mark.parametrize("keys", [8, 63, 200])
def test_sink_keys_are_scored_by_the_sink_queries(tokens: int, keys: int) -> None:
    q, sink_q = _random(2, tokens, 3, 16)
    k, v, sink = _random(keys, 3, 16), _random(keys, 3, 16) + 1, 5
    scores = torch.cat(
        [torch.einsum("thd,shd->hts", sink_q, k[:sink]), torch.einsum("thd,shd->hts", q, k[sink:])], dim=-1
    )
    expected = _softmax_attention(scores / 4, v)
    got = slab_attention(q[None], [k], [v], sink_queries=sink_q[None], sink_tokens=[sink])[0]
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(attend_two_reference(q, sink_q, k, v, sink), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bf16_stays_within_its_rounding_of_exact(scale: float) -> None:
    q, sink_q = (scale * _random(2, 40, 3, 16)).bfloat16()
    k, v, sink = (scale * _random(100, 3, 16)).bfloat16(), _random(100, 3, 16).bfloat16(), 20
    scores = torch.cat(
        [
            torch.einsum("thd,shd->hts", sink_q.double(), k[:sink].double()),
            torch.einsum("thd,shd->hts", q.double(), k[sink:].double()),
        ],
        dim=-1,
    )
    exact = _softmax_attention(scores / 4, v.double())
    merged = slab_attention(q[None], [k], [v], sink_queries=sink_q[None], sink_tokens=[sink])[0]
    for got in (merged, attend_two_reference(q, sink_q, k, v, sink)):
        # bf16 keeps eight bits; weights and output are each rounded once.
        assert (got - exact).square().mean().sqrt() <= 2**-8 * exact.square().mean().sqrt()


def test_the_reference_gives_the_same_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, sink_q = _random(2, 50, 2, 8)
    k, v = _random(30, 2, 8), _random(30, 2, 8)
    whole = attend_two_reference(q, sink_q, k, v, 10)
    monkeypatch.setattr(kernels.attention.reference, "SCORES_AT_ONCE", 7 * 30 * 2)
    torch.testing.assert_close(attend_two_reference(q, sink_q, k, v, 10), whole)


def test_streams_of_a_batch_may_be_filled_differently() -> None:
    q = _random(3, 6, 2, 8)
    keys, values = [_random(n, 2, 8) for n in (6, 12, 30)], [_random(n, 2, 8) + 1 for n in (6, 12, 30)]
    together = slab_attention(q, keys, values, sink_queries=q * 2, sink_tokens=[0, 0, 6])
    for row in range(2):
        alone = slab_attention(q[row : row + 1], keys[row : row + 1], values[row : row + 1])
        assert torch.equal(together[row], alone[0])


def test_key_order_does_not_matter() -> None:
    q, k, v = _random(1, 5, 2, 8), _random(40, 2, 8), _random(40, 2, 8)
    order = torch.randperm(40)
    torch.testing.assert_close(slab_attention(q, [k], [v]), slab_attention(q, [k[order]], [v[order]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_key_with_a_multiplicity_stands_for_that_many(dtype: torch.dtype) -> None:
    q, k, v = (_random(n, 2, 8).to(dtype) for n in (5, 4, 4))
    log_multiplicity = torch.tensor([0.0, 0.0, 0.0, math.log(9)])
    many_k, many_v = (torch.cat([x, x[-1:].expand(8, -1, -1)]) for x in (k, v))
    folded, unfolded = prompt_attention(q, k, v, log_multiplicity), prompt_attention(q, many_k, many_v, None)
    # Outputs are below 2: one unit in the last place is 2^-7 in bf16.
    torch.testing.assert_close(folded, unfolded, atol=2e-6 if dtype == torch.float32 else 2**-7, rtol=0)


def test_keys_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 2 heads of 8 channels"):
        slab_attention(_random(1, 5, 2, 8), [_random(9, 2, 16)], [_random(9, 2, 16)])


def test_a_sink_larger_than_its_slab_is_refused() -> None:
    q, k = _random(1, 5, 2, 8), _random(9, 2, 8)
    with pytest.raises(ValueError, match=r"sinks of \[10\] tokens in slabs of \[9\]"):
        slab_attention(q, [k], [k], sink_queries=q, sink_tokens=[10])

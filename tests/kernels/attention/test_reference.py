from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import kernels.attention.window
from kernels.attention.reference import attend
from kernels.attention.window import window_attention_reference
from tests.kernels.attention.pools import DIM, HEADS, LAYER, Run, pool, random, view


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("thd,shd->hts", q.double(), k.double()) * q.shape[-1] ** -0.5
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v.double())


@pytest.mark.parametrize("tokens", [1, 7, 64, 129])
@pytest.mark.parametrize("keys", [8, 63, 200])
def test_attention_is_a_softmax_over_scores(tokens: int, keys: int) -> None:
    runs = [Run(3, keys)]
    queries, kv = random(1, tokens, HEADS, DIM), view(pool(runs), runs, torch.device("cpu"))
    k, v, *_ = kv.attended(0, LAYER)
    exact = softmax_attention(queries[0], k, v).float()
    torch.testing.assert_close(attend(queries[0], k, v), exact, atol=2e-6, rtol=0)
    torch.testing.assert_close(window_attention_reference(queries, kv, LAYER)[0], exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bf16_stays_within_its_rounding_of_exact(scale: float) -> None:
    q, k = (scale * random(40, 3, 16)).bfloat16(), (scale * random(100, 3, 16)).bfloat16()
    v = random(100, 3, 16, seed=1).bfloat16()
    exact = softmax_attention(q, k, v)
    # bf16 keeps eight bits; weights and output are each rounded once.
    assert (attend(q, k, v) - exact).square().mean().sqrt() <= 2**-8 * exact.square().mean().sqrt()


def test_the_reference_gives_the_same_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run(0, 30)]
    queries, kv = random(1, 50, HEADS, DIM), view(pool(runs), runs, torch.device("cpu"))
    whole = window_attention_reference(queries, kv, LAYER)
    monkeypatch.setattr(kernels.attention.window, "SCORES_AT_ONCE", 7 * 30 * 2)
    torch.testing.assert_close(window_attention_reference(queries, kv, LAYER), whole)


def test_the_order_of_keys_does_not_matter() -> None:
    q, k, v, order = random(6, 2, 8), random(20, 2, 8), random(20, 2, 8) + 1, torch.randperm(20)
    torch.testing.assert_close(attend(q, k, v), attend(q, k[order], v[order]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_key_with_a_multiplicity_stands_for_that_many(dtype: torch.dtype) -> None:
    q, k, v = (random(n, 2, 8).to(dtype) for n in (5, 4, 4))
    many_k, many_v = (torch.cat([x, x[-1:].expand(8, -1, -1)]) for x in (k, v))
    folded, unfolded = attend(q, k, v, math.log(9)), attend(q, many_k, many_v)
    # Outputs are below 2: one unit in the last place is 2^-7 in bf16.
    torch.testing.assert_close(folded, unfolded, atol=2e-6 if dtype == torch.float32 else 2**-7, rtol=0)

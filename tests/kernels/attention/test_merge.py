from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.attention.merge import merge, merge_reference
from tests.tolerances import assert_within


def parts(tokens: int, heads: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two attentions, and log-sums of which some are far apart."""
    generator = torch.Generator().manual_seed(6)
    first, second = torch.randn(2, tokens, heads, dim, generator=generator)
    first_sums, second_sums = 30 * torch.randn(2, heads, tokens, generator=generator)
    return first.to(device), second.to(device), first_sums.to(device), second_sums.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 8), (37, 3, 24), (5, 2, 128)], ids=str)
def test_each_head_is_weighted_by_its_own_sums(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    first, second, *sums = parts(*shape, device)
    first, second = first.to(dtype), second.to(dtype)
    reference = merge_reference(first.float(), second.float(), *sums)
    assert_within("merge", merge(first, second, *sums), reference)


def test_keys_in_two_parts_are_attended_as_in_one() -> None:
    q, k, v = torch.randn(3, 2, 9, 2, 4, generator=torch.Generator().manual_seed(2)).unbind(1)[0].unbind(0)
    scores = torch.einsum("thd,shd->hts", q, k)
    made = [
        torch.einsum("hts,shd->thd", s.softmax(-1), x)
        for s, x in zip(scores.split(5, -1), v.split(5), strict=True)
    ]
    sums = [part.logsumexp(-1) for part in scores.split(5, -1)]
    whole = torch.einsum("hts,shd->thd", scores.softmax(-1), v)
    torch.testing.assert_close(merge_reference(*made, *sums), whole)


@pytest.mark.parametrize("wrong", range(4))
def test_parts_that_do_not_fit_are_refused(wrong: int, device: torch.device) -> None:
    given = list(parts(4, 2, 8, device))
    given[wrong] = given[wrong].double()
    with pytest.raises(ValueError, match="merge: "):
        merge(*given)

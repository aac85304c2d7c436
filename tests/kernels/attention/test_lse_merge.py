from __future__ import annotations

import torch

from kernels.attention.lse_merge import merge_splits, merge_splits_reference
from tests.kernels.attention.pools import random
from tests.tolerances import assert_within


def test_parts_are_weighed_by_their_sums_and_an_empty_one_by_nothing(device: torch.device) -> None:
    parts, log_sums = random(3, 5, 2, 24).to(device), 40 * random(3, 5, 2).to(device)
    log_sums[1] = -torch.inf
    output = torch.empty(5, 2, 24, device=device)
    merge_splits(parts, log_sums, output)
    assert_within("window_attention", output, merge_splits_reference(parts, log_sums, torch.float32))
    without = merge_splits_reference(parts[[0, 2]], log_sums[[0, 2]], torch.float32)
    assert_within("window_attention", output, without)

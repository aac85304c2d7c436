from __future__ import annotations

import pytest
import torch

from engines.device.conv_search import searching_convolutions


@pytest.mark.parametrize(("device", "searches"), [("cuda", True), ("cpu", False)])
def test_convolutions_are_searched_for_on_cuda_alone(device: str, searches: bool) -> None:
    with searching_convolutions(torch.device(device)):
        assert torch.backends.cudnn.benchmark is searches


def test_the_search_ends_with_a_warm_up_that_fails() -> None:
    with pytest.raises(MemoryError), searching_convolutions(torch.device("cuda")):
        raise MemoryError
    assert not torch.backends.cudnn.benchmark

from __future__ import annotations

import platform

import pytest
import torch

from benchmarks.counts import Work
from benchmarks.machine import Floor, Machine, Rates

RATES = Rates(flops_per_s=1e12, bytes_per_s=1e9)


@pytest.mark.parametrize(
    ("work", "floor"),
    [(Work(5 * 10**9, 10**6), Floor(5.0, "compute")), (Work(10**6, 3 * 10**6), Floor(3.0, "memory"))],
    ids=["compute", "memory"],
)
def test_the_floor_is_the_longer_of_computing_and_moving(work: Work, floor: Floor) -> None:
    assert RATES.floor(work) == floor


def test_a_machine_tells_what_ran_but_not_where() -> None:
    machine = str(Machine.here(torch.device("cpu")))
    assert torch.__version__ in machine
    assert platform.node() not in machine

from __future__ import annotations

import weakref

import pytest
import torch

from engines.device.memory_budget import MemoryBudget, typed_out_of_memory
from engines.errors import DeviceOutOfMemory


def test_a_device_out_of_memory_is_an_error_of_the_engine_that_keeps_no_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emptied: list[int] = []
    taken: list[weakref.ref[torch.Tensor]] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))

    def fail() -> None:
        scratch = torch.ones(3)
        taken.append(weakref.ref(scratch))
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    out_of_memory = pytest.raises(DeviceOutOfMemory, match="no memory left for a block: tried")
    with out_of_memory as caught, typed_out_of_memory("a block"):
        fail()
    assert caught.value.__cause__ is not None
    assert [taken[0](), emptied] == [None, [1]]


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), typed_out_of_memory("a block"):
        raise RuntimeError("illegal memory access")


def test_what_may_run_at_once_is_counted_together_but_for_what_sessions_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = {"passes": 300, "decode": 200, "text": 50}
    ran: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + peaks[ran[-1]])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000, 9000))
    works = [lambda name=name: ran.append(name) for name in peaks]
    budget = MemoryBudget.measured(torch.device("cuda:0"), *works, kept=150)
    assert (budget.free, budget.working) == (5000, 400)

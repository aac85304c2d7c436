from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure.no_memory import SMALLEST_BYTES, no_memory


def test_on_a_cpu_every_call_is_refused_until_it_ends() -> None:
    with no_memory(torch.device("cpu")), pytest.raises(torch.OutOfMemoryError):
        torch.ones(1)
    assert torch.ones(1) == 1


def test_on_a_gpu_all_is_taken_whatever_gaps_there_are_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps, emptied = [5000, 1 << 20, 700, 513], list[int]()

    def empty(size: int, **_: Any) -> str:
        for at, gap in enumerate(gaps):
            if size <= gap:
                gaps[at] -= size
                return "tensor"
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 20, 4 << 20))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    with no_memory(torch.device("cuda")):
        assert max(gaps) < SMALLEST_BYTES
        assert emptied == [1]
    assert emptied == [1, 1]

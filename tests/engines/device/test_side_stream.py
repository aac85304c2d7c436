"""The decoder's stream, as far as it can be seen without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engines.device.side_stream import SideStream
from engines.errors import ConfigError
from tests.support.fake_cuda import Stuck, install

CUDA = torch.device("cuda:0")


def test_a_device_beside_the_current_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ConfigError, match=r"on cuda:1, but cuda:0 is current; call torch.cuda.set_device\(1\)"):
        SideStream(torch.device("cuda:1"))


def test_kernels_of_the_decoders_stream_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, **options: asked.append(options))
    SideStream(torch.device("cuda:0"))
    assert asked == [{"priority": -1}]


def test_work_begins_at_its_event_and_not_behind_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch)
    side = SideStream(CUDA)
    block = cuda.main.launch()
    ready = side.record_event()
    cuda.main.launch()
    begun = side.begin(lambda: "pictures", ready)
    with pytest.raises(Stuck):
        begun.wait()
    block.finish()
    assert begun.wait() == "pictures"


def test_work_that_fails_has_stopped_before_its_memory_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch)
    side = SideStream(CUDA)

    def fail() -> None:
        cuda.current.launch()
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        side.begin(fail, None)
    assert cuda.synchronized == [cuda.streams[-1]]

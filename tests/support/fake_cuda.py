"""A stand-in for CUDA's queues: what waits for what, and when it is done, without a GPU.

Tensors are computed at once, on the CPU. What a test asks is whether an event has come: it comes when all has
that its stream was given before, and that is so unless the stream was given `Work` which is not done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.device import host_copy


class Stuck(AssertionError):
    """The host waits for what will not come while the test stands still."""


class Work:
    """Kernels in a stream, which are done when the test says so, at a moment in milliseconds."""

    def __init__(self) -> None:
        self.done_at: float | None = None

    def finish(self, at_ms: float = 0.0) -> None:
        self.done_at = at_ms


class FakeEvent:
    """As torch.cuda.Event: done at once if nothing was in the stream, or if it was never recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.enable_timing, self.blocking = enable_timing, blocking
        self._after: list[Work | FakeEvent] = []

    def record(self, stream: FakeStream | None = None) -> None:
        self._after = list((stream or FakeCuda.now.current).given)

    def query(self) -> bool:
        return self.done_at is not None

    def synchronize(self) -> None:
        if not self.query():
            raise Stuck("waits for an event that has not come")

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.enable_timing
        assert end.enable_timing
        assert self.done_at is not None
        assert end.done_at is not None
        return end.done_at - self.done_at

    @property
    def done_at(self) -> float | None:
        """The moment at which all before it is done."""
        moments = [work.done_at for work in self._after]
        return None if None in moments else max((m for m in moments if m is not None), default=0.0)


class FakeStream:
    """As torch.cuda.Stream: what it `given` is done in turn."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.priority = priority
        self.device = device
        self.cuda_stream = id(self)
        self.given: list[Work | FakeEvent] = []
        FakeCuda.now.streams.append(self)

    def wait_stream(self, stream: FakeStream) -> None:
        self.given.extend(stream.given)

    def wait_event(self, event: FakeEvent) -> None:
        self.given.append(event)

    def synchronize(self) -> None:
        FakeCuda.now.synchronized.append(self)

    def launch(self) -> Work:
        """Give it something that takes time."""
        self.given.append(work := Work())
        return work


class FakeCuda:
    """The device: its main stream, and which one is current."""

    now: FakeCuda

    def __init__(self) -> None:
        FakeCuda.now = self
        self.streams: list[FakeStream] = []
        self.synchronized: list[FakeStream | str] = []
        self.main = self.current = FakeStream()

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class DeviceTensor(Tensor):
    """A tensor on the CPU that says it is on a GPU, and notes which streams its memory waits for."""

    is_cuda = True

    def record_stream(self, stream: Any) -> None:
        self.__dict__.setdefault("read_by", []).append(stream)


def on_device(tensor: Tensor) -> Tensor:
    """As if a GPU had made it."""
    return tensor.as_subclass(DeviceTensor)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put the stand-in in the place of CUDA's queues."""
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: fake.synchronized.append("device"))
    monkeypatch.setattr(host_copy, "pinned_empty", lambda shape, dtype: torch.empty(tuple(shape), dtype=dtype))
    return fake

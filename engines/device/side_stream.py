"""Work beside the main queue of a device: on CUDA in a stream of its own, elsewhere in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch

from engines.device.event_timer import Lap
from engines.errors import ConfigError

T = TypeVar("T")

FIRST, EQUAL = -1, 0
"""Priorities of a stream: its kernels go before those of the main queue wherever both have some, or in turn."""


class Begun(NamedTuple, Generic[T]):
    """Work that a queue has been given: what it returned, when the device has done it, and the time it takes."""

    value: T
    done: torch.cuda.Event | None
    lap: Lap

    def wait(self) -> T:
        """The value, once the device has made it. The thread sleeps meanwhile."""
        if self.done is not None:
            self.done.synchronize()
        return self.value


class SideStream:
    """A second queue on `device`, for work that needs only a part of what the first one has been given.

    By default its kernels go first: pictures that are due matter more than the next block. Raises ConfigError if a
    CUDA device is not the calling thread's current one.
    """

    def __init__(self, device: torch.device, priority: int = FIRST) -> None:
        _require_current(device)
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=priority) if device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        """Whose queue it is."""
        return self._device

    def record_event(self) -> torch.cuda.Event | None:
        """The end of what is in the caller's queue now; None where queues are not used."""
        return None if self._stream is None else record_event(self._device)

    def begin(self, work: Callable[[], T], wait_for: torch.cuda.Event | None) -> Begun[T]:
        """Give this queue `work`, which begins at the event `wait_for`; elsewhere than on CUDA, do it.

        Without an event it begins when all that is in the caller's queue is done. Memory that it reads must stay
        the caller's until it is done. Where `work` raises, nothing of it is running any more.
        """
        if self._stream is None:
            lap = Lap(self._device)
            value = work()
            lap.stop()
            return Begun(value, None, lap)
        begin = record_event(self._device) if wait_for is None else wait_for
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(begin)
            lap = Lap(self._device)
            try:
                value = work()
            except BaseException:
                # What it had begun still reads memory that the caller is about to let go of.
                self._stream.synchronize()
                raise
            lap.stop()
            done.record(self._stream)
        return Begun(value, done, lap)


def record_event(device: torch.device) -> torch.cuda.Event:
    """The end of what is in the caller's queue on a CUDA device now."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _require_current(device: torch.device) -> None:
    """Kernels are launched, and their scratch memory lies, on the current device whatever they are given."""
    if device.type != "cuda":
        return
    current = torch.cuda.current_device()
    if device.index not in (None, current):
        raise ConfigError(
            f"the model is on {device}, but cuda:{current} is current; call torch.cuda.set_device({device.index}) "
            "first, in every thread that uses it, or show the process one GPU by CUDA_VISIBLE_DEVICES"
        )

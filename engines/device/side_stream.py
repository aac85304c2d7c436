"""Work beside the main queue of a device: on CUDA in a stream of its own, elsewhere in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from engines.errors import ConfigError

T = TypeVar("T")


class SideStream:
    """A second queue on `device`, for work that needs only a part of what the first one has been given.

    On CUDA it is the decoder's stream. Its kernels go first wherever both have some waiting: pictures that are due
    matter more than the next block. Raises ConfigError if a CUDA device is not the calling thread's current one.
    """

    def __init__(self, device: torch.device) -> None:
        _require_current(device)
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def record_event(self) -> torch.cuda.Event | None:
        """The end of what is in the caller's queue now; None where queues are not used."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._stream.device))
        return event

    def run(self, work: Callable[[], T], wait_for: torch.cuda.Event | None) -> T:
        """What `work` returns, once the device has made it; it begins at the event `wait_for`.

        Without an event it begins when all that is in the caller's queue is done. The thread sleeps meanwhile.
        """
        if self._stream is None:
            return work()
        begin = self.record_event() if wait_for is None else wait_for
        assert begin is not None
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(begin)
            made = work()
            done.record(self._stream)
        done.synchronize()
        return made


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

"""Work beside the main queue of a device: on CUDA in a stream of its own, elsewhere in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Beside:
    """A second queue on `device`, for work that needs only a part of what the first one has been given."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> torch.cuda.Event | None:
        """The end of what is in the caller's queue now; None where queues are not used."""
        if self._stream is None:
            return None
        mark = torch.cuda.Event()
        mark.record(torch.cuda.current_stream(self._stream.device))
        return mark

    def run(self, work: Callable[[], T], after: torch.cuda.Event | None) -> T:
        """What `work` returns, once the device has made it; it begins at the mark `after`.

        Without a mark it begins when all that is in the caller's queue is done. The thread sleeps meanwhile.
        """
        if self._stream is None:
            return work()
        begin = self.mark() if after is None else after
        assert begin is not None
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(begin)
            made = work()
            done.record(self._stream)
        done.synchronize()
        return made

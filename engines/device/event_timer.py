"""How long a device worked on something, without the host waiting to know."""

from __future__ import annotations

import time

import torch


class Lap:
    """The time from its making to `stop`, both marked in the calling thread's queue.

    On CUDA the device sets the marks, so this is its own time; elsewhere the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin = _mark(device)
        self._end: torch.cuda.Event | float | None = None

    def stop(self) -> None:
        """Mark the end."""
        self._end = _mark(self._device)

    @property
    def seconds(self) -> float | None:
        """None as long as it is not stopped, or the device not past its end."""
        begin, end = self._begin, self._end
        if isinstance(begin, float) or isinstance(end, float):
            return end - begin if isinstance(begin, float) and isinstance(end, float) else None
        return begin.elapsed_time(end) / 1e3 if end is not None and end.query() else None


def _mark(device: torch.device) -> torch.cuda.Event | float:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event

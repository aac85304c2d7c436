"""Copies between a device and the host that wait for nothing but what they copy."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.device.side_stream import EQUAL, record_event

MOST_STREAMS = 16
"""Of copies that are under way. PyTorch has 32 of a priority, and gives them out again in turn."""


class HostTensor(NamedTuple):
    """A tensor as it travels: its bytes, shape and dtype. Numpy has no bfloat16."""

    data: bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> HostTensor:
        """A copy of `tensor`, which is on the host: see `HostCopier`."""
        here = tensor.detach().contiguous()
        return cls(here.flatten().view(torch.uint8).numpy().tobytes(), tuple(here.shape), here.dtype)

    def tensor(self) -> Tensor:
        """On the CPU, in memory of its own."""
        flat = torch.from_numpy(np.frombuffer(bytearray(self.data), np.uint8))
        return flat.view(self.dtype).reshape(self.shape)


class PendingCopy:
    """Tensors on their way to the host. It may be let go of without waiting."""

    def __init__(self, copies: list[Tensor], done: torch.cuda.Event | None) -> None:
        self._copies = copies
        self._done = done

    def result(self) -> list[Tensor]:
        """The tensors on the CPU. The thread sleeps until they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies


class _CopyStream:
    """A stream, and the end of the last copy in it."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device, priority=EQUAL)
        self.done = torch.cuda.Event(blocking=True)

    def copy(self, tensors: Sequence[Tensor], ready: torch.cuda.Event) -> PendingCopy:
        """To pinned memory, which PyTorch's allocator gives to nobody else before the copy is done."""
        self.done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            copies = [self._copied(tensor) if tensor.is_cuda else tensor for tensor in tensors]
            self.done.record(self.stream)
        return PendingCopy(copies, self.done)

    def _copied(self, tensor: Tensor) -> Tensor:
        # Its memory may be let go of, and would be somebody else's before this stream has read it.
        tensor.record_stream(self.stream)
        return pinned_empty(tensor.shape, tensor.dtype).copy_(tensor, non_blocking=True)


class HostCopier:
    """Copies tensors of `device` to the host, beside all that its queues have been given since.

    Each copy waits for its own event only: one that has to wait for a block leaves the others be, because up to
    `MOST_STREAMS` copies that are under way have a stream each. Any thread may use it. On a CPU tensors are there
    already.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: list[_CopyStream] = []
        self._lock = Lock()

    def begin(self, tensors: Sequence[Tensor], ready: torch.cuda.Event | None = None) -> PendingCopy:
        """Begin to copy `tensors`, which the device has made at `ready`, or at the end of the caller's queue.

        Nobody may write to them before they are copied.
        """
        if self._device.type != "cuda":
            return PendingCopy(list(tensors), None)
        begin = record_event(self._device) if ready is None else ready
        with self._lock:
            return self._free_stream().copy(tensors, begin)

    def _free_stream(self) -> _CopyStream:
        """One that is free, a new one, or the one that was given something longest ago. It goes to the end."""
        stream = next((stream for stream in self._streams if stream.done.query()), None)
        if stream is not None:
            self._streams.remove(stream)
        elif len(self._streams) < MOST_STREAMS:
            stream = _CopyStream(self._device)
        else:
            stream = self._streams.pop(0)
        self._streams.append(stream)
        return stream


def pinned_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Host memory that a CUDA device reads and writes by itself."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. From the host to CUDA it goes through pinned memory: the host waits for nothing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

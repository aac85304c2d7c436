"""Errors of the engine as what they mean to whoever it worked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import (
    ConfigError,
    DeviceOutOfMemory,
    EngineError,
    PoolFull,
    PositionLimit,
    PromptError,
    SnapshotError,
)
from serving.errors import FrameOutOfRange, InvalidRequest, MemoryFull, ServingError, SlotsFull, Unforeseen


def refusal(error: EngineError) -> ServingError:
    """What ends, or refuses, the one session; Unforeseen where that is the fault of the server."""
    if isinstance(error, PoolFull):
        return SlotsFull(str(error))
    if isinstance(error, DeviceOutOfMemory):
        return MemoryFull(str(error))
    if isinstance(error, ConfigError | PromptError | SnapshotError):
        return InvalidRequest(str(error))
    if isinstance(error, PositionLimit):
        return FrameOutOfRange(str(error))
    return Unforeseen(f"an error of the engine, which nobody foresaw: {type(error).__name__}: {error}")


@contextmanager
def refused() -> Iterator[None]:
    """Raise what an error of the engine means."""
    try:
        yield
    except EngineError as error:
        raise refusal(error) from error

"""Commands that are asked to end before they are done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals by which a command is asked to end; what it has made till then is kept."""

INTERRUPTED = 130
"""The exit status of a command that ended so."""


@contextmanager
def interruptible() -> Iterator[Event]:
    """An event that Ctrl-C, SIGTERM and a terminal that closes set; a second Ctrl-C is the ordinary one."""
    interrupted = Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Commands that are asked to end before they are done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

from serving.launch.ending_signals import ending_signals

INTERRUPTED = 130
"""The exit status of a command that ended so."""


@contextmanager
def interruptible() -> Iterator[Event]:
    """An event that `ending_signals` set; a second Ctrl-C is the ordinary one."""
    interrupted = Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, interrupt) for number in ending_signals()}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The signals by which a program is asked to end."""

from __future__ import annotations

import signal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ending_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM and a terminal that closes, unless the program is to outlive that, as under `nohup`."""
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in ENDING if not (outlives and number is signal.SIGHUP))

"""The processes that a process has started, and those that they have: found, and ended.

A process that dies leaves its children to the next ancestor that is a subreaper, see prctl(2): by that none of
them is lost to the one that has to end them all.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind. Linux only: elsewhere nothing happens."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants() -> list[psutil.Process]:
    """All processes below this one."""
    return psutil.Process().children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; what has ended and was not collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_descendants(grace_s: float) -> None:
    """Ask all to terminate, and kill what is left after `grace_s`; returns when none is left."""
    for process in descendants():
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + grace_s
    while _reap():
        if time.monotonic() > deadline:
            _kill_all()
        time.sleep(POLL_S)


def _kill_all() -> None:
    for process in descendants():
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _reap() -> bool:
    """Collect children that have ended. False if there are no others."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True

"""Notices work that does not come back, and a device that fails in it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from typing_extensions import override

T = TypeVar("T")
P = ParamSpec("P")

TIMES_USUAL = 20.0
SHORTEST_S = 10.0
FIRST_S = 300.0
"""Before any work has come back: with compilation, or with the first allocations of a device."""

RECENT = 16


class WorkWatch:
    """Watches what one thread does, one thing at a time, which `what` names.

    Compares how long it has been running with how long it should take; `clock` is monotonic.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._began: float | None = None
        self._most = FIRST_S
        self._failure: torch.AcceleratorError | None = None

    @property
    def is_running(self) -> bool:
        """Whether something has not come back yet."""
        return self._began is not None

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns; it should take no longer than what was done before it."""
        with self.running(max(self._recent, default=0.0)):
            return work()

    @contextmanager
    def running(self, usual_s: float) -> Iterator[None]:
        """Something runs that should take `usual_s`; before any has come back that is not known for sure."""
        most = max(SHORTEST_S, TIMES_USUAL * usual_s)
        self._most = most if self._recent else max(FIRST_S, most)
        self._began = began = self._clock()
        try:
            with self.using_device():
                yield
            self._recent.append(self._clock() - began)
        finally:
            self._began = None

    @contextmanager
    def using_device(self) -> Iterator[None]:
        """The device is used, for however long."""
        try:
            yield
        except torch.AcceleratorError as error:
            self._failure = error
            raise

    def check(self) -> None:
        """Raise RuntimeError if something should have come back by now, or if the device has failed."""
        if self._failure is not None:
            raise RuntimeError(f"the device failed: {self._failure}")
        began = self._began
        if began is not None and (ran := self._clock() - began) > self._most:
            raise RuntimeError(f"{self._what} has not come back for {ran:.0f} s")


class WatchedExecutor(Executor):
    """Has `executor` do its work, and `watch` know of a device that fails in any of it."""

    def __init__(self, executor: Executor, watch: WorkWatch) -> None:
        self._executor = executor
        self._watch = watch

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._executor.submit(self._run, partial(fn, *args, **kwargs))

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, work: Callable[[], T]) -> T:
        with self._watch.using_device():
            return work()

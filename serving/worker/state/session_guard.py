"""What goes wrong in the work for one session ends that session, and none of its neighbours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from engines.errors import EngineError
from serving.errors import ServingError, SessionError, SessionFailed
from serving.pipeline.engine_errors import refusal
from serving.worker.state.active_session import ActiveSession

logger = logging.getLogger(__name__)

T = TypeVar("T")


class SessionGuard:
    """Stands wherever the work for one of a replica's sessions is entered; `end` is told which fails, and why.

    A device in an unknown state is nobody's alone: torch.AcceleratorError is raised, and not forgotten.
    """

    def __init__(self, end: Callable[[ActiveSession, ServingError | None], None]) -> None:
        self._end = end
        self._device_failure: torch.AcceleratorError | None = None

    def check(self) -> None:
        """Raise RuntimeError if the device has failed."""
        if self._device_failure is not None:
            raise RuntimeError(f"the device failed: {self._device_failure}")

    @contextmanager
    def working(self, session: ActiveSession, doing: str) -> Iterator[None]:
        """What is raised inside ends `session`."""
        with suppress(ServingError), self.answering(session, doing):
            yield

    @contextmanager
    def answering(self, session: ActiveSession, doing: str) -> Iterator[None]:
        """The same where somebody waits for an answer. Raises the ServingError with which the session ends."""
        try:
            yield
        except torch.AcceleratorError as error:
            self._device_failure = error
            raise
        except Exception as error:
            failure = _failure(session, doing, error)
            self._end(session, failure)
            raise failure from error

    @contextmanager
    def streaming(self, session: ActiveSession, doing: str) -> Iterator[None]:
        """The same where somebody reads a stream, which a ServingError ends without the session."""
        told: ServingError | None = None
        with self.answering(session, doing):
            try:
                yield
            except ServingError as error:
                told = error
        if told is not None:
            raise told

    def each(self, sessions: Sequence[ActiveSession], doing: str, work: Callable[[ActiveSession], T]) -> list[T]:
        """What `work` gives of each; of those that end, or for which it fails, nothing."""
        found: list[T] = []
        for session in sessions:
            if not session.ending:
                with self.working(session, doing):
                    found.append(work(session))
        return found


def _failure(session: ActiveSession, doing: str, error: Exception) -> ServingError:
    """What an error means to the session in whose work it came. What no client can mend is logged."""
    meant = refusal(error) if isinstance(error, EngineError) else error
    if isinstance(meant, SessionError):
        return meant
    logger.error("a session failed", extra={"session": session.id, "doing": doing}, exc_info=error)
    return SessionFailed.of(doing, error)

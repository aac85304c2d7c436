"""What a replica tells the policy that scales its deployment, and what that means for those whom it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.deployments.scaling.policy import NOTICED_S
from serving.errors import SlotsFull


class ReplicaStats:
    """Of one replica, whose start took `start_s`."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._is_scaled = False

    @classmethod
    def since(cls, began: float) -> ReplicaStats:
        """Of a replica that began to start at `began`, by the monotonic clock, and is there now."""
        return cls(time.monotonic() - began)

    def report(
        self, *, used: float, slots: float, admitted: float = 0.0, refused: float = 0.0
    ) -> dict[str, float]:
        """A `ReplicaReport` by names. Serve asks for it where it scales the deployment, and only there."""
        self._is_scaled = True
        return {
            "used": used, "slots": slots, "admitted": admitted, "refused": refused, "start_s": self._start_s,
        }  # fmt: skip

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Say to whom no slot is free when another replica may be there, if one would be started."""
        try:
            yield
        except SlotsFull as full:
            if not self._is_scaled or full.retry_after_s is not None:
                raise
            raise type(full)(str(full), NOTICED_S + self._start_s) from full


class BusyTime:
    """The share of its time that something has worked lately. `clock` is monotonic."""

    LATELY_S = 30.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._worked_s = self._seen_s = self._share = 0.0
        self._looked_at = clock()

    def worked(self, seconds: float) -> None:
        """It has worked for so long, and is done."""
        self._worked_s += seconds

    def share(self) -> float:
        """Of the last half minute or so."""
        now, worked_s = self._clock(), self._worked_s
        if (elapsed_s := now - self._looked_at) > 0:
            weight = min(1.0, elapsed_s / self.LATELY_S)
            self._share += weight * ((worked_s - self._seen_s) / elapsed_s - self._share)
            self._looked_at, self._seen_s = now, worked_s
        return self._share

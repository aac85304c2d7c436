"""How many replicas a stage needs, by what those that run report.

Nothing here reads a clock or knows Ray, so that a model of a fleet can ask as Serve's controller does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

NOTICED_S = 3.0
"""How long it takes until a session that came has been reported and a replica for it is being started."""

MOST_START_S = 600.0
"""A start that takes longer waits for a machine, of which nothing follows for the next one."""

STARTS_LOOKED_AT = 6
"""Over how many starts of a replica arrivals are counted: of a lone one no more than the spare slot follows."""

LEAST_LOOKED_AT_S = 60.0

HAIR = 1e-9
"""By which a sum of shares may be more than it is."""


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica says of itself: slots that are `used`, of those that it could fill.

    Beside them the sessions that it has let in, and those that it had no room for, since it began, and the seconds
    that its start took. What a slot is, each stage knows by itself.
    """

    used: float
    slots: float
    admitted: float = 0.0
    refused: float = 0.0
    start_s: float = 0.0

    @property
    def share(self) -> float:
        """How much of the replica is used."""
        return self.used / max(self.slots, 1.0)


@dataclass(frozen=True)
class Stage:
    """The replicas of a stage at one moment: reports by replica, how many run, and how many are to."""

    now: float
    reports: Mapping[str, ReplicaReport]
    running: int
    target: int


@dataclass(frozen=True)
class History:
    """What is remembered of a stage: sessions that arrive in a second, and how long its last start took."""

    last: Stage
    per_second: float = 0.0
    starting_since: float | None = None
    start_s: float | None = None

    @property
    def until_another_s(self) -> float:
        """From a session that needs another replica until that is there; before any was seen, as replicas say."""
        reported = max((report.start_s for report in self.last.reports.values()), default=0.0)
        start_s = reported if self.start_s is None else self.start_s
        return NOTICED_S + min(start_s, MOST_START_S)

    @property
    def spare(self) -> float:
        """Slots to keep free: for whoever is expected until another replica is there, and for one at least."""
        expected = self.per_second * self.until_another_s
        return max(1.0, expected + 2 * math.sqrt(expected))


def remembered(before: History | None, stage: Stage) -> History:
    """What is to be remembered once a stage has been looked at."""
    if before is None:
        return History(stage, starting_since=_starting_since(None, stage))
    elapsed_s = max(0.0, stage.now - before.last.now)
    window_s = max(LEAST_LOOKED_AT_S, STARTS_LOOKED_AT * before.until_another_s)
    per_second = before.per_second * math.exp(-elapsed_s / window_s) + _arrived(before.last, stage) / window_s
    start_s = before.start_s
    if before.starting_since is not None and stage.running > before.last.running:
        start_s = stage.now - before.starting_since
    return History(stage, per_second, _starting_since(before.starting_since, stage), start_s)


def replicas_wanted(history: History, fewest: int, most: int) -> int:
    """How many hold what is there, and leave the spare slots free; as many as now while none has reported."""
    stage = history.last
    if not stage.reports:
        return _within(stage.target, fewest, most)
    reports = stage.reports.values()
    slots = max(1.0, sum(report.slots for report in reports) / len(reports))
    needed = sum(report.share for report in reports) + history.spare / slots
    return _within(math.ceil(needed - HAIR), fewest, most)


def _arrived(before: Stage, stage: Stage) -> float:
    """Sessions that have come. One that is refused is refused by each replica, and each of them counts it."""
    seen = [(before.reports[name], report) for name, report in stage.reports.items() if name in before.reports]
    admitted = sum(max(0.0, now.admitted - then.admitted) for then, now in seen)
    return admitted + max((now.refused - then.refused for then, now in seen), default=0.0)


def _starting_since(since: float | None, stage: Stage) -> float | None:
    """Since when fewer replicas run than are to."""
    return (stage.now if since is None else since) if stage.running < stage.target else None


def _within(count: int, fewest: int, most: int) -> int:
    return max(fewest, min(most, count))

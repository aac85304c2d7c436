"""Whose block is made next on one device."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

CAUTION = 1.25
"""Where somebody would be late otherwise a block is supposed to take so many times what it usually does."""

IMPATIENT_S = 1.0
"""A session that is to begin waits no longer for a moment at which it makes nobody late."""

STARVED_S = 10.0
"""In so long a block is made for one or the other unpaced session, however much the paced ones have to do."""

SHORTEST_S = 1e-3
"""What a block counts where its cost is not known."""

MOST_CREDIT = 2
"""Of the longest call: how far a session that needed less falls behind the others, and is served before them."""


class Urgency(Enum):
    """How a session waits for its next block."""

    CLOCKED = "clocked"
    """Its viewers' clock runs: the block is to be on screen in time."""
    WAITING = "waiting"
    """It has a pace, and no clock runs yet: it is to begin, or nobody looks."""
    UNPACED = "unpaced"
    """It takes what the others leave."""


@dataclass(frozen=True)
class Candidate:
    """A session that waits for its next block, which may begin at `due` and takes `cost` seconds.

    `due` is infinite where something has to happen first. A clocked block is to be made by `deadline`; any other
    one would be by then if the device were free. Sessions of one `shape` can share their passes.
    """

    key: str
    shape: Hashable
    deadline: float
    due: float
    urgency: Urgency = Urgency.CLOCKED
    cost: float = 0.0


class Scheduler:
    """Picks those whose blocks are made now, at most `batch` together.

    Where all clocked blocks can be made in time, theirs come in the order of their deadlines, and before them
    whatever makes none of them late: first sessions that are to begin, then, once no clocked block is due, unpaced
    ones. Where they cannot, clocked and waiting sessions have equal shares of the device's time. So have unpaced
    ones of what is left to them.
    """

    def __init__(self, batch: int = 1) -> None:
        self._batch = batch
        self._used: dict[str, float] = {}

    def pick(self, candidates: Iterable[Candidate], now: float, free_at: float = 0.0) -> list[Candidate]:
        """Whose blocks are made now, together; none if none is due, or may be made without making others late.

        The device is done at `free_at` with what it has been given.
        """
        everybody, at = tuple(candidates), max(now, free_at)
        self._settle(everybody)
        due = [candidate for candidate in everybody if candidate.due <= now]
        first = self._first(due, everybody, now, at)
        if first is None:
            return []
        picked = [first]
        for other in sorted(due, key=self._order):
            if len(picked) < self._batch and other.shape == first.shape and other not in picked:
                more = [*picked, other]
                seconds = sum(candidate.cost for candidate in more)
                if other.urgency is first.urgency or self.leaves_time(seconds, everybody, at, but=more):
                    picked = more
        self._charge(picked)
        return picked

    def charge(self, key: str, seconds: float) -> None:
        """A session has had so much of the device's time, beside its blocks."""
        self._used[key] = self._used.get(key, 0.0) + seconds

    def leaves_time(
        self, seconds: float, candidates: Iterable[Candidate], at: float, but: Sequence[Candidate] = ()
    ) -> bool:
        """Whether a call of `seconds`, at `at`, lets all clocked blocks `but` those it makes be made in time."""
        others = [c for c in candidates if c.urgency is Urgency.CLOCKED and c not in but]
        # One that waits for its viewer, and would be late if it were made now, is not kept waiting by us.
        hopeful = [c for c in others if c.due <= at or at + c.cost <= c.deadline]
        return _in_time(hopeful, at + CAUTION * seconds, CAUTION)

    def _first(
        self, due: Sequence[Candidate], everybody: Sequence[Candidate], now: float, at: float
    ) -> Candidate | None:
        unpaced = sorted((c for c in due if c.urgency is Urgency.UNPACED), key=self._share)
        longest = STARVED_S * sum(c.urgency is Urgency.UNPACED for c in everybody)
        for candidate in unpaced:
            waited = now - candidate.deadline
            if waited > longest or (waited > longest / 2 and self.leaves_time(candidate.cost, everybody, at)):
                return candidate
        clocked = [c for c in due if c.urgency is Urgency.CLOCKED]
        waiting = [c for c in due if c.urgency is Urgency.WAITING]
        if not _in_time(clocked, at) or any(now > c.deadline + IMPATIENT_S for c in waiting):
            return min((*clocked, *waiting), key=self._share)
        for begins in (waiting, clocked, [] if clocked else unpaced):
            for candidate in sorted(begins, key=self._order):
                is_clocked = candidate.urgency is Urgency.CLOCKED
                if is_clocked or self.leaves_time(candidate.cost, everybody, at):
                    return candidate
        return None

    def _order(self, candidate: Candidate) -> tuple[float, float]:
        """Among those that wait in the same way."""
        deadline = candidate.deadline if candidate.urgency is Urgency.CLOCKED else math.inf
        return deadline, self._share(candidate)

    def _share(self, candidate: Candidate) -> float:
        """The device's time that it has had."""
        return self._used[candidate.key]

    def _charge(self, picked: Sequence[Candidate]) -> None:
        for candidate in picked:
            self.charge(candidate.key, max(candidate.cost, SHORTEST_S))

    def _settle(self, everybody: Sequence[Candidate]) -> None:
        """Forget those who left; newcomers have had as much as who has had least."""
        used: dict[str, float] = {}
        for rivals in (
            [c for c in everybody if c.urgency is not Urgency.UNPACED],
            [c for c in everybody if c.urgency is Urgency.UNPACED],
        ):
            known = [self._used[c.key] for c in rivals if c.key in self._used]
            credit = MOST_CREDIT * max((max(c.cost, SHORTEST_S) for c in rivals), default=0.0)
            least = max(min(known, default=0.0), max(known, default=0.0) - credit)
            used |= {c.key: max(self._used.get(c.key, least), least) for c in rivals}
        self._used = used


def _in_time(candidates: Iterable[Candidate], at: float, caution: float = 1.0) -> bool:
    """Whether blocks that are made one after the other from `at` on, each once it is due, meet their deadlines."""
    for candidate in sorted(candidates, key=lambda c: c.deadline):
        at = (at if math.isinf(candidate.due) else max(at, candidate.due)) + caution * candidate.cost
        if at > candidate.deadline:
            return False
    return True

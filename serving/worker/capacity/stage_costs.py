"""How long a stage takes for a block of any picture size: measured where it was, estimated elsewhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig

REMEMBERED = 16
"""Blocks of a size whose times count."""

REMEMBERED_S = 60.0
"""For how long they do: what took the cores a minute ago may be over."""

MOST_KINDS = 64
"""Sizes that are remembered beside the measured ones; then the one that was made longest ago is forgotten."""

TRUSTED = 4
"""Blocks after which a size's first estimate may be lowered."""

FIXED = 0.15
"""The part of a block of the model's own size that has nothing to do with the size.

Fitted to the pocket model on a CPU: from 32x48 to 240x416 the estimates are within 15 % of what was measured.
"""


class _Timed(NamedTuple):
    at: float
    seconds: float


class StageCosts:
    """Seconds that a stage takes for a block. `work` says how much there is to do, `own` has the model's own size.

    An estimate is what a quarter of the last blocks of that size took at most: most of the others were held up.
    Before there are any, it is what was measured, or else that of the size that is nearest, in proportion to the
    work, of those that are made in the same way if there are any; 0 as long as nothing was measured at all.
    """

    def __init__(self, own: AnyStreamConfig, work: Callable[[AnyStreamConfig], float]) -> None:
        self._work = work
        self._own = own
        self._first: dict[AnyStreamConfig, float] = {}
        self._recent: dict[AnyStreamConfig, deque[_Timed]] = {}

    def measured(self, stream: AnyStreamConfig, seconds: float) -> None:
        """A block of this size was timed when nothing else was done."""
        self._first[_kind(stream)] = seconds

    def observe(self, stream: AnyStreamConfig, seconds: float, now: float) -> None:
        """A block has been made."""
        kind = _kind(stream)
        recent = self._recent.pop(kind, None) or deque(maxlen=REMEMBERED)
        recent.append(_Timed(now, seconds))
        self._recent[kind] = recent
        if len(self._recent) > MOST_KINDS:
            del self._recent[next(iter(self._recent))]
        usual = _quarter([timed.seconds for timed in recent])
        if kind in self._first and len(recent) >= TRUSTED:
            self._first[kind] = min(self._first[kind], usual)

    def is_estimate(self, stream: AnyStreamConfig) -> bool:
        """Whether blocks of this size were never timed by themselves."""
        return _kind(stream) not in self._first

    def expect(self, stream: AnyStreamConfig, now: float) -> float:
        """How long a block of this size takes."""
        kind = _kind(stream)
        if (seconds := self._of(kind, now)) is not None:
            return seconds
        known = self._first.keys() | self._recent.keys()
        if not known:
            return 0.0
        amount = self._amount(kind)
        alike = [other for other in known if _made_as(other) == _made_as(kind)]
        nearest = min(alike or known, key=lambda other: abs(math.log(self._amount(other) / amount)))
        return (self._of(nearest, now) or 0.0) * amount / self._amount(nearest)

    def _of(self, kind: AnyStreamConfig, now: float) -> float | None:
        recent = [timed.seconds for timed in self._recent.get(kind, ()) if now - timed.at <= REMEMBERED_S]
        return _quarter(recent) if recent else self._first.get(kind)

    def _amount(self, stream: AnyStreamConfig) -> float:
        own, is_own_kind = self._own, type(stream) is type(self._own)
        whole = own if is_own_kind else replace(stream, height=own.height, width=own.width)
        return FIXED * self._work(whole) + (1 - FIXED) * self._work(stream)


@lru_cache(maxsize=1024)
def _kind(stream: AnyStreamConfig) -> AnyStreamConfig:
    """What streams have in common whose blocks take equally long."""
    if isinstance(stream, VideoStreamConfig):
        return replace(stream, seed=0, noise_scale=1.0, motion_noise=False)
    return replace(stream, seed=0)


def _made_as(stream: AnyStreamConfig) -> object:
    """From prompts alone, or in which loop."""
    return stream.loop if isinstance(stream, VideoStreamConfig) else None


def _quarter(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 4]

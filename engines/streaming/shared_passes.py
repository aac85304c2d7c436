"""Which streams go through the network together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from engines.errors import StreamError

T = TypeVar("T")


def share_passes(due: Sequence[T], shape: Callable[[T], Hashable], most: int) -> Iterator[list[T]]:
    """Those of one `shape`, which can share a pass, at most so many at a time."""
    alike: dict[Hashable, list[T]] = {}
    for one in due:
        alike.setdefault(shape(one), []).append(one)
    for group in alike.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def require_distinct(streams: Sequence[object]) -> None:
    """Raise StreamError if one of `streams` is there twice."""
    if len({id(stream) for stream in streams}) != len(streams):
        raise StreamError("a stream is named twice; its blocks come one after the other")

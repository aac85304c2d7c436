"""The latest of what takes long to make, each used several times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from engines.errors import ConfigError

ThingT = TypeVar("ThingT")


class Reservoir(Generic[ThingT]):
    """Keeps the latest `kept` things that `make` has made.

    A thing is drawn about `repeats` times before newer ones replace it. Until the reservoir is full, as many are
    made as are drawn.
    """

    def __init__(self, make: Callable[[], Sequence[ThingT]], kept: int, repeats: float) -> None:
        if kept < 1 or repeats < 1:
            raise ConfigError(f"a reservoir of {kept}, each used {repeats} times; both must be at least 1")
        self._make, self._repeats = make, repeats
        self._things: deque[ThingT] = deque(maxlen=kept)
        self._due = 0.0

    def __len__(self) -> int:
        return len(self._things)

    def draw(self, count: int, generator: np.random.Generator) -> list[ThingT]:
        """`count` of the things that are kept; one may come twice."""
        full = len(self._things) == self._things.maxlen
        self._due += count / self._repeats if full else count
        while self._due > 0:
            made = self._make()
            self._things.extend(made)
            self._due -= len(made)
        return [self._things[index] for index in generator.integers(len(self._things), size=count)]

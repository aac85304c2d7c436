from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from engines.errors import ConfigError
from engines.pocket.training.reservoir import Reservoir


def counting(kept: int, repeats: float) -> tuple[Reservoir[int], list[int]]:
    """A reservoir of numbers, made two at a time; and those made so far."""
    numbers, made = count(), []

    def make() -> list[int]:
        made.extend([next(numbers), next(numbers)])
        return made[-2:]

    return Reservoir(make, kept, repeats), made


def test_as_many_are_made_as_are_drawn_until_it_is_full() -> None:
    reservoir, made = counting(kept=8, repeats=4)
    for _ in range(2):
        reservoir.draw(4, np.random.default_rng(0))
    assert len(made) == len(reservoir) == 8


def test_once_full_each_is_used_several_times() -> None:
    reservoir, made = counting(kept=8, repeats=4)
    generator = np.random.default_rng(0)
    for _ in range(102):
        reservoir.draw(4, generator)
    assert len(made) == 8 + 100 * 4 / 4


def test_old_ones_go_first() -> None:
    reservoir, made = counting(kept=4, repeats=1)
    generator = np.random.default_rng(0)
    for _ in range(10):
        drawn = reservoir.draw(4, generator)
        assert set(drawn) <= set(made[-4:])


@pytest.mark.parametrize(("kept", "repeats"), [(0, 2.0), (4, 0.5)])
def test_a_reservoir_of_nothing_is_refused(kept: int, repeats: float) -> None:
    with pytest.raises(ConfigError, match="both must be at least 1"):
        counting(kept, repeats)

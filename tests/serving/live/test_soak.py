"""Sessions go on while replicas of every kind are killed and stopped, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak.doors import doors_violations, soak_doors
from benchmarks.soak.report import violations
from benchmarks.soak.run import soak

KILLS, SESSIONS, SEED = 20, 8, 20


@pytest.mark.slow
def test_nothing_is_lost_in_twenty_kills_and_stops(tmp_path: Path) -> None:
    found = soak(KILLS, SESSIONS, SEED, tmp_path)
    assert violations(found) == []
    assert len(found.injected) == KILLS
    assert found.tally.reread.frames > 0
    assert found.tally.prompts > KILLS


@pytest.mark.slow
def test_nothing_is_lost_in_three_minutes_at_the_doors(tmp_path: Path) -> None:
    found = soak_doors(minutes=3, seed=SEED, folder=tmp_path)
    assert doors_violations(found) == []
    assert found.disturbed["killed_proxy"] > 0
    assert found.disturbed["killed_clients"] > 0
    assert found.disturbed["full_disk"] > 0 or not found.has_disk
    assert found.tally.reread.frames > 0

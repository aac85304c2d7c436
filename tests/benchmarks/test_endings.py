"""How long a server takes to end, of a real one."""

from __future__ import annotations

import pytest

from benchmarks.endings import ENDINGS, LONGEST_S, Ending, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ending", [ENDINGS[1], ENDINGS[4]], ids=lambda ending: ending.name)
def test_a_server_has_ended_once_none_of_its_processes_is_left(ending: Ending) -> None:
    assert 0 < measure(ending) < LONGEST_S

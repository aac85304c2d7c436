from __future__ import annotations

import numpy as np
import pytest

from benchmarks import endless_session
from serving.session.types import PAGE


def test_what_a_block_costs_is_told_early_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless_session, "WINDOW", 300)
    day = endless_session.play(1000)
    assert endless_session.compared(day.samples.delta_bytes, np.max)["late"] < 1500
    assert endless_session.growth(day.samples.spool_bytes)["late"] < 60
    assert max(day.samples.held) <= 4 * PAGE
    assert [*day.copy.log] == [*day.session.applied]

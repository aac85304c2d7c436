from __future__ import annotations

import time

import pytest
import torch

from engines.device.event_timer import Lap
from tests.support.fake_cuda import install


def test_a_device_times_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch)
    before = cuda.main.launch()
    lap = Lap(torch.device("cuda:0"))
    work = cuda.main.launch()
    lap.stop()
    cuda.main.launch()
    before.finish(at_ms=40)
    assert lap.seconds is None
    work.finish(at_ms=65)
    assert lap.seconds == pytest.approx(0.025)


def test_a_lap_that_is_not_stopped_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Lap(torch.device("cpu")).seconds is None
    install(monkeypatch)
    assert Lap(torch.device("cuda:0")).seconds is None


def test_a_cpu_is_timed_by_the_clock() -> None:
    lap = Lap(torch.device("cpu"))
    time.sleep(0.01)
    lap.stop()
    assert lap.seconds is not None
    assert 0.01 <= lap.seconds < 1

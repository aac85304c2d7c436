"""What the benchmark of overload makes of what its viewers saw."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.overload import Viewed, busy, viewed
from serving.client.capture import Arrival


def arrivals(*intervals: float) -> list[Arrival]:
    found, at = [Arrival(0, 9, 50.0)], 50.0
    for interval in intervals:
        at += interval
        found.append(Arrival(found[-1].end_frame, found[-1].end_frame + 12, at))
    return found


def test_the_beginning_is_left_out_and_a_block_that_is_waited_for_is_late() -> None:
    found = viewed(16, arrivals(0.1, 3.0, 0.75, 1.5, 0.75), [11.0])
    assert found == Viewed(16, 12.0, 0.25, 0.75, [11.0])


def test_of_an_unpaced_session_nothing_is_late() -> None:
    assert viewed(0, arrivals(3.0, 2.0, 2.0), []) == Viewed(0, 6.0, 0.0, 0.0, [])


def test_who_looks_on_for_too_short_a_time_is_told_so() -> None:
    with pytest.raises(ValueError, match="1 chunks came after 3 s; look on for longer"):
        viewed(16, arrivals(3.0), [])


def test_neighbours_are_gone_with_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    whole = subprocess.Popen

    def noted(command: list[str]) -> subprocess.Popen[bytes]:
        begun.append(whole([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with busy(2):
        assert [process.poll() for process in begun] == [None, None]
    assert all(process.returncode is not None for process in begun)

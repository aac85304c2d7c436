"""The benchmark of video streams, on a model that takes no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure.machine import Rates
from benchmarks.video import main


def test_every_kind_of_stream_is_measured_with_its_floors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Rates, "measure", lambda device, dtype: Rates(1e9, 1e9))
    file = tmp_path / "video.json"
    main(["--sizes", "16x32", "32x32", "--steps", "1", "2", "--runs", "1", "--json", str(file)])
    streams = json.loads(file.read_text())["streams"]
    kinds = [(one["stream"]["height"], one["stream"]["steps"], one["stream"]["loop"]) for one in streams]
    published = [700], [700, 500]
    assert kinds == [
        (size, steps, loop) for size in (16, 32) for steps in published for loop in ("plain", "batch")
    ]
    plain, batch = (one["floors"][1][0] for one in streams[2:4])
    assert 0 < batch <= plain, "a stream batch reads the weights once"
    assert all(one["overlapped_fps"] > 0 and one["first_ms"] > 0 for one in streams)
    assert all(one["streams"] == 2 and one["in_turn"] and one["shared"] for one in streams)
    assert capsys.readouterr().out.count("| 16x32 |") == 4

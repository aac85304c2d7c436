from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.measure.machine import Machine
from benchmarks.restyle_server import Latency
from benchmarks.restyle_steps import STEPS, Row, floor_ms, keep
from engines.config.video_stream import Loop
from serving.config import ServerConfig


@pytest.mark.parametrize(
    ("loop", "floors"),
    [("plain", [187.5, 187.5, 187.5]), ("batch", [187.5, 437.5, 937.5])],
    ids=["plain", "batch"],
)
def test_a_frame_is_as_old_as_the_pictures_and_the_blocks_that_it_waits_for(
    loop: Loop, floors: list[float]
) -> None:
    assert [floor_ms(len(steps), loop) for steps in STEPS] == floors


def test_a_server_takes_the_steps() -> None:
    assert [ServerConfig(video_steps=steps).video_steps for steps in STEPS] == list(STEPS)


def test_a_row_that_is_measured_anew_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    machine, latency = Machine.here(torch.device("cpu")), Latency(190.0, 300.0, 400.0, 0.0)
    one = Row(machine, (850,), "plain", 187.5, latency, 30.0, 481, 0, (0.0, 0.0, 0.0))
    for row in (one, replace(one, steps=(850, 500)), replace(one, dropped=7)):
        keep(row, tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["steps"], row["dropped"]) for row in rows] == [([850], 7), ([850, 500], 0)]

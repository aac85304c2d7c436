"""What the benchmark of serving makes of its samples."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.harness.processes import Tree, Usage
from benchmarks.serving import Report, StreamCursor, Unpaced, plot, summary

VIEWING = StreamCursor(
    first_frame=300.0,
    intervals=[700.0, 800.0],
    waited=[0.0, 10.0, 50.0],
    there=[600.0],
    seen=[900.0],
    delivered=33,
    generated=45,
)
REPORT = Report(
    paced=[VIEWING, VIEWING._replace(waited=[0.0, 0.0, 0.0])],
    usage=Usage(10.0, {"Denoiser": 0.9}, 0.1),
    unpaced=[Unpaced(45.0, 50.0), Unpaced(40.0, 50.0), Unpaced(10.0, 50.0)],
    refused_ms=[20.0, 30.0],
    memory=[(float(second), {"Denoiser": 300.0 + second}) for second in range(8)],
    load=(0.1, 0.1, 0.1),
)


def test_a_block_is_on_time_unless_its_viewer_sees_that_it_is_late() -> None:
    found = summary(REPORT)
    assert (found["blocks"], found["blocks_on_time"]) == (6, round(5 / 6, 4))
    assert (found["delivered_frames"], found["generated_frames"]) == (66, 90)


def test_speed_is_the_typical_pair_and_growth_leaves_the_beginning_out() -> None:
    found = summary(REPORT)
    assert found["unpaced_by_alone"] == 0.8
    assert found["memory_growth_mib"] == {"Denoiser": 5.0}


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    plot(REPORT, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size > 10_000


def test_a_tree_knows_what_its_processes_hold_and_compute() -> None:
    tree = Tree(os.getpid())
    meter = tree.measure()
    assert sum(range(2_000_000)) > 0
    usage = meter.read()
    assert usage.cores["client"] > 0
    assert tree.memory_mib()["client"] > 10

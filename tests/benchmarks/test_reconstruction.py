from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.judging.smoothness import beside, summary
from benchmarks.reconstruction import main
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Scene


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    scene = Scene(*(kind for kind in ("train", "red", "circle", "hills", "noon", "rain")))  # type: ignore[arg-type]
    return Renderer().render([Clip(scene, seed=1), Clip(scene, seed=2)], [0, 0], 9)


def test_the_clips_themselves_are_as_they_should_be(clips: torch.Tensor) -> None:
    found = summary(beside(clips, clips))
    assert found["change_by_wanted"] == [1.0] * 4
    assert found["copies"] == [0.0] * 4
    assert found["edges_by_wanted"] == 1.0


def test_pictures_that_are_shown_four_times_are_copies_in_three_phases(clips: torch.Tensor) -> None:
    held = clips.clone()
    for first in (1, 5):
        held[:, first : first + 4] = clips[:, first : first + 1]
    found = summary(beside(held, clips))
    assert found["copies"] == [0.0, 1.0, 1.0, 1.0]


def test_blurred_pictures_have_less_of_edges(clips: torch.Tensor) -> None:
    blurred = torch.nn.functional.avg_pool2d(clips.flatten(0, 1), 3, 1, 1).view_as(clips)
    edges = summary(beside(blurred, clips))["edges_by_wanted"]
    assert isinstance(edges, float)
    assert edges < 0.8


def test_the_shipped_autoencoder_is_measured(tmp_path: Path) -> None:
    main(["--clips", "8", "--threads", "1", "--results", str(tmp_path)])
    document = json.loads((tmp_path / "reconstruction_pocket_cpu.json").read_text())
    assert document["largest_difference_by_split"] < 1e-5
    assert document["pictures"]["all"]["psnr_db"] > 27
    assert document["adherence"]["returned"]["subject"]["share"] >= 0.75
    assert (tmp_path / "reconstruction_pocket_cpu_sheet.png").exists()

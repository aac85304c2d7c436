"""The measure of restyling, on the shipped pocket model."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.restyle import case, kinds, main, parse
from engines.pocket.world.scene import Motion


def test_eight_cases_ask_for_light_and_weather_in_every_motion() -> None:
    drawn = {(case(number).asked, case(number).before.motion) for number in range(8)}
    assert drawn == {(asked, motion) for asked in ("light", "weather") for motion in Motion}


def test_kinds_of_stream_begin_at_the_noise_of_their_first_step() -> None:
    streams = kinds(parse(["--steps", "850,500", "750,500", "--loop", "plain", "batch"])).values()
    assert [(one.steps[0], one.loop, one.noise_scale) for one in streams] == [
        (850, "plain", 0.85), (850, "batch", 0.85), (750, "plain", 0.75), (750, "batch", 0.75),
    ]  # fmt: skip
    (quieter,) = kinds(parse(["--noise-scale", "0.6"])).values()
    assert quieter.noise_scale == 0.6


def test_restyling_stands_between_the_autoencoder_and_the_clip_as_asked(tmp_path: Path) -> None:
    main(["--clips", "4", "--threads", "1", "--results", str(tmp_path)])
    document = json.loads((tmp_path / "restyle_pocket_cpu.json").read_text())
    (restyled,), beside = document["streams"].values(), document["beside"]
    assert beside["asked"]["asked"]["all"]["share"] == 1
    assert beside["autoencoder"]["asked"]["all"]["share"] == 0 < restyled["asked"]["all"]["share"]
    assert beside["autoencoder"]["kept"]["setting"]["share"] == 1
    places = [one["off_place_by_width"]["all"]["median"] for one in (beside["autoencoder"], restyled)]
    assert places[0] < 0.02 < places[1]
    assert (tmp_path / "restyle_pocket_cpu_sheet.png").exists()

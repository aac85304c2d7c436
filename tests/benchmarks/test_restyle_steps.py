from __future__ import annotations

import pytest

from benchmarks.restyle_steps import STEPS, floor_ms
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

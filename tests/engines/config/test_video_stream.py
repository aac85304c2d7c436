from __future__ import annotations

from typing import Any

import pytest

from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"height": 100}, "height 100 is not a positive multiple of 16"),
        ({"window_frames": 3}, "leaves no slot to overwrite behind a first block of 2; 4 do"),
        ({"block_frames": 2, "window_frames": 7}, "window_frames 7 is not filled"),
        ({"block_frames": 3}, "a first block of 2 is shorter than later ones of 3"),
        ({"sink_frames": 6}, "sink_frames 6 leaves no room"),
        ({"block_frames": 2}, "compares single frames"),
        ({"sink_threshold": 2.0}, "sink_threshold 2.0 is outside -1..1"),
        ({"refresh_at": 6}, "refresh_at 6 is not beyond window_frames 6"),
        ({"steps": ()}, "steps is empty"),
        ({"steps": (500, 700)}, "are not descending"),
        ({"steps": (1001,)}, "not all within 0..1000"),
        ({"noise_scale": 0.0}, "noise_scale 0.0 is outside 0..1"),
        ({"loop": "both"}, "loop 'both' is none of plain, batch"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_generated_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VideoStreamConfig(**options)

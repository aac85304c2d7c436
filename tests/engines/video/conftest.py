"""Small video streams on the tiny model, and inputs for their blocks."""

from __future__ import annotations

import pytest

from engines.config.video_stream import VideoStreamConfig
from engines.loading.model import Model
from engines.video.generator import VideoGenerator
from tests.support.generators import generator_for


@pytest.fixture
def clip() -> VideoStreamConfig:
    return VideoStreamConfig(seed=3, height=16, width=32, steps=(700, 500, 300))


@pytest.fixture
def video(model: Model) -> VideoGenerator:
    return VideoGenerator(generator_for(model))

"""Small video streams on the tiny model, and inputs for their blocks."""

from __future__ import annotations

import pytest
import torch

from engines.config.networks import VAEConfig
from engines.config.video_stream import VideoStreamConfig
from engines.loading.model import Model
from engines.vae.wan_vae import WanVAE
from engines.video.generator import VideoGenerator
from engines.video.input import InputEncoder
from tests.support.generators import generator_for


@pytest.fixture
def clip() -> VideoStreamConfig:
    return VideoStreamConfig(seed=3, height=16, width=32, steps=(700, 500, 300))


@pytest.fixture
def video(model: Model) -> VideoGenerator:
    return VideoGenerator(generator_for(model))


@pytest.fixture(scope="module")
def encoder() -> InputEncoder:
    torch.manual_seed(0)
    return InputEncoder(WanVAE(VAEConfig(dim=4)), torch.device("cpu"), torch.float32)

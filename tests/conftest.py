"""What many tests share: one tiny model, and a generator for it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from tests.support.generators import generator_for

# A slow machine is no failure: speed is measured in benchmarks.
settings.register_profile("longtake", deadline=None)
settings.load_profile("longtake")

RECORDINGS = Path(__file__).parent / "assets" / "recordings"


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> None:
    """Processes that tests start inherit what is ignored here, as by `nohup` or in the background of a script."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Test shapes are too small for two, and other processes need the second core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> Model:
    return Model.random(preset("tiny-taehv"), seed=1)


@pytest.fixture
def generator(model: Model) -> Generator:
    return generator_for(model)


@pytest.fixture
def small() -> StreamConfig:
    """A stream of 32x48 pixels: six tokens a frame."""
    return StreamConfig(seed=5, height=32, width=48)


@pytest.fixture(scope="session")
def prompts(model: Model) -> list[Prompt]:
    """Three prompts of different lengths."""
    generator = torch.Generator().manual_seed(7)
    dim = model.config.transformer.text_dim
    return [Prompt(f"prompt {n}", torch.randn(n, dim, generator=generator)) for n in (3, 11, 256)]

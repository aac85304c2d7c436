"""The slab against LongLive's own bookkeeping, over many shapes of window."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer
from tests.conftest import RECORDINGS
from tests.reference.recording import Recording
from tests.support.rolling_cache import roll_longlive
from tests.support.rollouts import roll

WINDOWS = [(3, 12, 3), (3, 12, 0), (3, 12, 6), (3, 6, 3), (3, 3, 0), (1, 4, 1), (1, 5, 3), (2, 8, 4)]


@pytest.mark.parametrize(("block", "window", "sink_frames"), WINDOWS, ids=lambda frames: str(frames))
@pytest.mark.parametrize("sink", ["global", "local"])
@pytest.mark.parametrize("rope", ["relative", "absolute"])
def test_latents_are_those_of_longlives_rolling_cache(
    model: Model,
    generator: Generator,
    prompts: list[Prompt],
    block: int,
    window: int,
    sink_frames: int,
    sink: Literal["global", "local"],
    rope: Literal["relative", "absolute"],
) -> None:
    config = StreamConfig(3, 16, 32, block, window, sink_frames, sink, rope)
    switches = {0: prompts[0], 1: prompts[1], 3: prompts[2], 6: prompts[0], 9: prompts[1]}
    ours = roll(generator, generator.open(config), 11, switches)
    torch.testing.assert_close(ours, roll_longlive(model.transformer, config, 11, switches), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["rollout_absolute", "rollout_relative"])
def test_bf16_latents_stay_within_a_percent_of_longlives(name: str) -> None:
    recording = Recording(RECORDINGS / f"{name}.safetensors")
    transformer = CausalTransformer(recording.transformer())
    transformer.load_state_dict(recording.weights("model."))
    transformer.bfloat16()
    generator = Generator(transformer, None, slab_bytes=1 << 30)
    switches = {block: recording.prompt(i, row=0) for i, block in enumerate((0, 3, 7))}
    ours = roll(generator, generator.open(recording.stream()), 9, switches).float()
    wanted = roll_longlive(transformer, recording.stream(), 9, switches).float()
    assert (ours - wanted).square().mean().sqrt() <= 0.01 * wanted.square().mean().sqrt()
    assert (ours - wanted).abs().max() <= 0.1

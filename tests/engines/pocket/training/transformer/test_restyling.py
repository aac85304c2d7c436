"""A transformer learns to restyle in the windows that video streams have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.config.presets import preset
from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.pocket.model_files import WEIGHTS
from engines.pocket.training.transformer import restyling
from engines.pocket.training.transformer.dataset import Reuse, Teachers
from engines.pocket.training.transformer.flow_loss import FlowLoss
from engines.pocket.training.transformer.flow_matching import new_transformer
from engines.pocket.training.transformer.restyling import (
    RESTYLED,
    LaneMemory,
    LaneWindow,
    Pairs,
    Restyling,
    RestylingTeacher,
    restyled,
    restyling_losses,
)
from engines.pocket.world.scene import Scene
from engines.sampling.flow_schedule import FlowSchedule
from engines.sampling.motion_noise import mix
from engines.text.prompt import Prompt
from engines.text.tokenizer import Tokenizer
from engines.video.generator import VideoGenerator
from tests.support.generators import denoiser_for
from tests.support.videos import block_input

CPU = torch.device("cpu")
POCKET = preset("pocket")
SMALL = replace(POCKET.transformer, dim=96, layers=2, heads=4, ffn_dim=96, position_grid=(3, 2, 3))
STREAM = VideoStreamConfig(height=32, width=48, steps=(700,), timestep_below=0, sink_threshold=None)
"""With one step a block's latents are what came in minus the flow that the transformer predicts."""

FRAMES = 9
FLOW_LOSS = FlowLoss(torch.ones(16), 0.0, 0.0)


def padded(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, POCKET.transformer.text_len - len(rows))).unsqueeze(0)


def window(ahead: int = 0) -> LaneWindow:
    return LaneWindow(STREAM, POCKET.transformer.head_dim, CPU, ahead)


@torch.no_grad()
def test_training_attends_what_a_video_stream_attends() -> None:
    transformer, config = Model.random(POCKET, seed=5).transformer, STREAM
    video, rows = VideoGenerator(denoiser_for(transformer)), torch.randn(9, POCKET.transformer.text_dim)
    stream = video.open(config)
    video.set_prompt(stream, Prompt("any", rows))
    memory = LaneMemory(transformer, padded(rows), window())
    for number, block in enumerate(memory.window.blocks(FRAMES)):
        given = block_input(config, number)
        (made,) = video.generate([stream], [given])
        assert made is not None
        level = FlowSchedule((given.timestep,), config.shift, "nearest").levels[0]
        noise = stream.noise.draw(number, 0, tuple(given.latents.shape))
        memory.block, noisy = block, mix(given.latents, noise, given.noise_scale)[None]
        flow = transformer(noisy, torch.full((1, len(block)), level.timestep), memory)
        torch.testing.assert_close(made.latents, (noisy - level.sigma * flow)[0], atol=2e-5, rtol=1e-4)


def pairs() -> Pairs:
    torch.manual_seed(2)
    given = torch.randn(2, 5, 16, 4, 6)
    return Pairs(given, given + 1, torch.randn(2, 64, POCKET.transformer.text_dim))


def test_a_transformer_learns_to_restyle() -> None:
    transformer, drawn = new_transformer(SMALL, 0, CPU), pairs()
    optimizer, settings, found = torch.optim.AdamW(transformer.parameters(), lr=3e-3), Restyling(), list[float]()
    lane = LaneWindow(STREAM, SMALL.head_dim, CPU)
    for _ in range(60):
        error = restyling_losses(transformer, drawn, lane, settings, FLOW_LOSS)["restyling"]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        found.append(error.item())
    assert sum(found[-10:]) < 0.7 * sum(found[:10])


def test_later_positions_are_those_behind_the_sink() -> None:
    ones = torch.ones(1, 6 * 2, 1, POCKET.transformer.head_dim)
    assert torch.equal(window(ahead=7).turned(ones, range(2)), window().turned(ones, range(2)))
    assert torch.equal(window(ahead=7).turned(ones, range(4, 6)), window().turned(ones, range(11, 13)))


def test_a_restyled_scene_keeps_what_a_prompt_does_not_change() -> None:
    generator, changed = np.random.default_rng(0), set[str]()
    for _ in range(200):
        scene = Scene.random(generator)
        after = restyled(scene, generator)
        assert not after.held_out
        changed |= set(scene.differing(after))
    assert changed == set(RESTYLED)


def test_pairs_show_one_clip_twice(teacher: RestylingTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restyling, "RESTYLED", ("color",))
    drawn = next(teacher.pairs)
    assert drawn.given.shape == drawn.asked.shape == (2, 3, 16, 12, 20)
    changed = (drawn.given - drawn.asked).abs().amax((1, 2)) > 1
    assert changed.any()
    assert changed.float().mean() < 0.4


def test_a_share_of_the_steps_restyles(teacher: RestylingTeacher) -> None:
    transformer = new_transformer(POCKET.transformer, 0, CPU)
    losses = teacher.beside(lambda _: {"total": torch.zeros(())}, transformer)
    kinds = ["restyling" in losses(step) for step in range(6)]
    assert kinds == [False, False, True, False, False, True]


@pytest.fixture
def teacher() -> RestylingTeacher:
    model = Model.random(POCKET, seed=5)
    tokenizer = Tokenizer.from_folder(WEIGHTS, POCKET.text_encoder.text_len)
    teachers = Teachers(model.vae, model.text_encoder, tokenizer, POCKET.transformer.text_len)
    settings = Restyling(batch=2, frames=3, reuse=Reuse(8, 2))
    return RestylingTeacher(teachers, POCKET, settings, 1.0, (1,), CPU, FLOW_LOSS)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"begun": 1.5}, {"sigmas": (0.8, 0.4)}, {"sigmas": (0.0, 1.0)}])
def test_restyling_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Restyling(**wrong)

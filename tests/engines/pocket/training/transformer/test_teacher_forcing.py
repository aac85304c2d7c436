"""What training attends is what serving attends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.pocket.training.trainer import Budget
from engines.pocket.training.transformer.energy_score import EnergyScore
from engines.pocket.training.transformer.self_forcing import Rollouts, SelfForcingTraining
from engines.pocket.training.transformer.teacher_forcing import RolloutMemory, SequenceMemory, Stretch, Window
from engines.sampling.flow_schedule import TRAINING_STEPS, FlowSchedule, add_noise, predict_clean
from engines.sampling.noise import SeededNoise
from engines.text.prompt import Prompt
from tests.support.generators import denoiser_for

CONFIG = preset("tiny-taehv")
ONE_STEP = replace(CONFIG.stream, steps=(1000,), height=32, width=48)
"""With one step a block's latents are its noise minus the flow that the transformer predicts."""

BLOCKS = 7


@pytest.fixture(scope="module")
def transformer() -> torch.nn.Module:
    return Model.random(CONFIG, seed=5).transformer


def rows(seed: int) -> Tensor:
    return torch.randn(9, CONFIG.transformer.text_dim, generator=torch.Generator().manual_seed(seed))


def padded(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, CONFIG.transformer.text_len - len(rows))).unsqueeze(0)


def served(transformer, switch: int | None = None, config: StreamConfig = ONE_STEP) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Latents and first noise [BLOCKS, frames, ...] of a stream, whose prompt changes before block `switch`."""
    generator = denoiser_for(transformer)
    stream = generator.open(config)
    shape = ONE_STEP.latent_shape(16, ONE_STEP.block_frames)
    generator.set_prompt(stream, Prompt("first", rows(1)))
    latents = []
    for block in range(BLOCKS):
        if block == switch:
            generator.set_prompt(stream, Prompt("second", rows(2)))
        latents.append(generator.generate([stream])[0].latents)
    noise = [stream.noise.draw(block, 0, shape) for block in range(BLOCKS)]
    return torch.stack(latents), torch.stack(noise)


def window(config: StreamConfig = ONE_STEP) -> Window:
    return Window(config, CONFIG.transformer.head_dim, torch.device("cpu"))


def predicted(transformer, latents: Tensor, noise: Tensor, prompt: Tensor, stretch: Stretch) -> Tensor:  # type: ignore[no-untyped-def]
    """The stretch's noisy blocks, each denoised in one step behind the clean blocks of `latents`."""
    noisy, size = noise[list(stretch.noisy)], ONE_STEP.block_frames
    past = latents[list(stretch.clean)]
    levels = torch.cat([torch.zeros(len(past)), torch.ones(len(noisy))]).repeat_interleave(size).unsqueeze(0)
    memory = SequenceMemory(transformer, padded(prompt), stretch, window())
    flow = transformer(torch.cat([past, noisy]).flatten(0, 1).unsqueeze(0), levels * TRAINING_STEPS, memory)
    return noisy - flow[0, len(past) * size :].unflatten(0, (-1, size))


@torch.no_grad()
def test_a_stretch_predicts_the_blocks_that_a_stream_makes(transformer) -> None:  # type: ignore[no-untyped-def]
    latents, noise = served(transformer)
    everything = tuple(range(BLOCKS))
    made = predicted(transformer, latents, noise, rows(1), Stretch(everything, everything))
    torch.testing.assert_close(made, latents, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("switch", [1, 2, 3])
def test_blocks_after_a_prompt_switch_see_a_recached_past(transformer, switch: int) -> None:  # type: ignore[no-untyped-def]
    latents, noise = served(transformer, switch)
    stretch = Stretch(tuple(range(switch + 1)), (switch,), recached=switch)
    made = predicted(transformer, latents, noise, rows(2), stretch)
    torch.testing.assert_close(made[0], latents[switch], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_gap_leaves_out_only_what_is_missing(transformer) -> None:  # type: ignore[no-untyped-def]
    latents, noise = served(transformer)
    made = predicted(transformer, latents, noise, rows(1), Stretch((0, 4, 5, 6), (6,)))
    whole = predicted(transformer, latents, noise, rows(1), Stretch(tuple(range(BLOCKS)), (6,)))
    # The missing blocks still reach block 6 through those that saw them, but it sees none of them itself.
    assert (made - whole).abs().mean() < 0.2 * (whole - latents[6:].roll(1, 1)).abs().mean()


@torch.no_grad()
def test_a_rollout_makes_the_stream(transformer) -> None:  # type: ignore[no-untyped-def]
    latents, noise = served(transformer)
    memory = RolloutMemory(transformer, padded(rows(1)), window())
    for block in range(BLOCKS):
        times = torch.full((1, ONE_STEP.block_frames), float(TRAINING_STEPS))
        made = noise[block] - transformer(noise[block].unsqueeze(0), times, memory)[0]
        torch.testing.assert_close(made, latents[block], atol=2e-5, rtol=1e-4)
        transformer.write_kv(latents[block].unsqueeze(0), transformer.modulations(times * 0), memory)
        memory.advance()


@torch.no_grad()
def test_a_rollout_in_noisy_context_makes_the_stream(transformer) -> None:  # type: ignore[no-untyped-def]
    config = replace(ONE_STEP, steps=(1000, 500), context="noisy")
    (first, last), drawn = FlowSchedule.of(config, 0).levels, SeededNoise(config.seed)
    latents, noise = served(transformer, config=config)
    memory = RolloutMemory(transformer, padded(rows(1)), window())
    for block in range(BLOCKS):
        flow = transformer(noise[block][None], torch.full((1, 3), first.timestep), memory)
        made = predict_clean(noise[block][None], flow, first.sigma)
        noisy = add_noise(made, drawn.draw(block, 1, tuple(noise[block].shape))[None], last.sigma)
        flow = transformer(noisy, torch.full((1, 3), last.timestep), memory)
        torch.testing.assert_close(predict_clean(noisy, flow, last.sigma)[0], latents[block], atol=5e-5, rtol=1e-4)
        if block == 0:
            transformer.write_kv(latents[block][None], transformer.modulations(torch.zeros(1, 3)), memory)
        memory.advance()


def test_a_window_for_each_step_is_refused(transformer) -> None:  # type: ignore[no-untyped-def]
    config = replace(ONE_STEP, context="steps")
    with pytest.raises(ConfigError, match="has one for each"):
        Rollouts(transformer, config, SelfForcingTraining(Budget(1, 1, 1e-3), 1), EnergyScore(torch.ones(16), 0.0))


@pytest.mark.parametrize(
    ("numbers", "noisy", "recached", "complaint"),
    [((1, 2), (2,), 0, "ascending"), ((0, 1), (2,), 0, "not among"), ((0, 4), (4,), 2, "stream's first")],
)
def test_a_stretch_that_no_stream_has_is_refused(
    numbers: tuple[int, ...], noisy: tuple[int, ...], recached: int, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Stretch(numbers, noisy, recached)

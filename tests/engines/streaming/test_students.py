"""Few-step students: other steps in the first block, and context that a denoising step writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engines.config.presets import PRESETS, preset
from engines.config.stream import StreamConfig
from engines.loading.loader import load_model
from engines.loading.model import Model
from engines.pocket.model_files import model_files
from engines.streaming.generator import Generator
from engines.streaming.snapshot import restore, take_exact, take_light
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from tests.support.generators import denoiser_for, generator_for
from tests.support.rolling_cache import roll_longlive
from tests.support.rollouts import roll, roll_pictures

SMALL = StreamConfig(seed=3, height=16, width=32, window_frames=6, sink_frames=1, steps=(1000, 500))
FIRST = (1000, 750, 500, 250)
STUDENTS = {
    "two steps, four in the first block": replace(SMALL, first_steps=FIRST),
    "noisy context": replace(SMALL, first_steps=FIRST, context="noisy"),
    "noisy, framewise, one step": replace(
        SMALL, block_frames=1, steps=(1000,), first_steps=FIRST, context="noisy"
    ),
    "noisy, from 1600/1601": replace(SMALL, steps=(1000, 250), context="noisy", start_level=1600 / 1601),
    "noisy, local sink": replace(SMALL, sink="local", context="noisy"),
    "noisy, sink over two blocks": replace(SMALL, window_frames=8, sink_frames=4, context="noisy"),
    "a window for each step": replace(SMALL, context="steps"),
    "a window for each step, local sink": replace(SMALL, sink="local", context="steps"),
    "a window for each step, sink over two blocks": replace(
        SMALL, window_frames=8, sink_frames=4, context="steps"
    ),
}


@pytest.mark.parametrize("config", STUDENTS.values(), ids=STUDENTS)
def test_a_student_makes_what_its_description_says(
    model: Model, generator: Generator, prompts: list[Prompt], config: StreamConfig
) -> None:
    switches = {0: prompts[0], 2: prompts[1], 5: prompts[2]}
    ours = roll(generator, generator.open(config), 8, switches)
    torch.testing.assert_close(ours, roll_longlive(model.transformer, config, 8, switches), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", STUDENTS.values(), ids=STUDENTS)
def test_a_student_goes_on_from_a_snapshot(model: Model, prompts: list[Prompt], config: StreamConfig) -> None:
    generator = generator_for(model)
    stream = generator.open(config)
    roll_pictures(generator, stream, 5, {0: prompts[0], 3: prompts[1]})
    exact, rebuilt = restore(generator, take_exact(generator, stream)).stream, generator.fork(stream)
    light = restore(generator, take_light(generator, stream)).stream
    generator.rebuild(rebuilt)
    for restored, original in ((exact, stream), (light, rebuilt)):
        wanted = roll(generator, original, 3, {6: prompts[2]})
        assert torch.equal(roll(generator, restored, 3, {6: prompts[2]}), wanted)


@pytest.mark.parametrize("sink_frames", [1, 4])
@pytest.mark.parametrize("context", ["noisy", "steps"])
def test_rebuilding_a_student_keeps_its_sink(
    generator: Generator, prompts: list[Prompt], context: Any, sink_frames: int
) -> None:
    stream = generator.open(replace(SMALL, window_frames=8, sink_frames=sink_frames, context=context))
    roll_pictures(generator, stream, 5, {0: prompts[0]})
    kept = [generator.cache.state(lane, sink_frames)["raw_keys"] for lane in stream.lanes]
    wanted = [part.clone() for part in kept]
    for part in kept:
        part.fill_(torch.nan)
    generator.rebuild(stream)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, wanted, strict=True))


def passes_of(model: Model, config: StreamConfig, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Passes of each of the first blocks, clean ones included."""
    calls: list[int] = []
    for name in ("denoise", "write_kv"):
        method = getattr(model.transformer, name)

        def counted(*args: Any, _method: Any = method) -> Any:
            calls[-1] += 1
            return _method(*args)

        monkeypatch.setattr(model.transformer, name, counted)
    generator = denoiser_for(model.transformer)
    stream = generator.open(config)
    generator.set_prompt(stream, prompt)
    for _ in range(4):
        calls.append(0)
        generator.generate([stream])
        generator.write_context([stream])
    return calls


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("two steps, four in the first block", [5, 3, 3, 3]), ("noisy context", [5, 2, 2, 2]),
        ("noisy, framewise, one step", [5, 1, 1, 1]), ("a window for each step", [2, 2, 2, 2]),
    ],
)  # fmt: skip
def test_a_block_takes_as_many_passes_as_it_says(
    model: Model, prompts: list[Prompt], name: str, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passes_of(model, STUDENTS[name], prompts[0], monkeypatch) == passes
    assert STUDENTS[name].passes == passes[-1]


def test_a_session_with_a_window_for_each_step_is_counted_with_all_of_them(model: Model) -> None:
    config = STUDENTS["a window for each step"]
    generator = generator_for(model, sessions=1, config=config)
    generator.open(config)
    assert generator.cache.windows.free == 0


@pytest.mark.parametrize("name", [name for name, model in PRESETS.items() if model.stream.passes < 5])
def test_the_presets_students_run_on_a_tiny_network(model: Model, prompts: list[Prompt], name: str) -> None:
    config = replace(PRESETS[name].stream, height=16, width=32)
    generator = denoiser_for(model.transformer)
    made = roll(generator, generator.open(config), 4, {0: prompts[0], 2: prompts[1]})
    assert made.shape[0] == config.blocks.latent_frames(4)
    assert bool(made.isfinite().all())


def test_the_shipped_weights_run_as_a_student() -> None:
    config = preset("pocket")
    loaded = load_model(config, model_files(), "cpu", torch.float32)
    student = replace(config.stream, steps=(1000, 500), first_steps=config.stream.steps, context="noisy")
    generator = generator_for(loaded.model, sessions=1, config=student)
    encoder = PromptEncoder(loaded.tokenizer, loaded.model.text_encoder, capacity=2)
    switches = {0: encoder.encode("a lighthouse at night"), 2: encoder.encode("a lighthouse in fog")}
    _, pictures = roll_pictures(generator, generator.open(student), 4, switches)
    assert pictures.shape == (config.stream.blocks.pixel_frames(4), 96, 160, 3)
    assert pictures.float().std() > 10

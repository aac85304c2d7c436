"""The window against LongLive's own bookkeeping, over many shapes of it, and its rules one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.cache.window import NOT_WRITTEN, FixedSlot, Placement, SinkWindow
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer
from tests.conftest import RECORDINGS
from tests.reference.recording import Recording
from tests.support.generators import denoiser_for
from tests.support.rolling_cache import roll_longlive
from tests.support.rollouts import roll

LONGLIVE = SinkWindow(frames=12, sink=3)

WINDOWS = [
    (3, 12, 3, None), (3, 12, 0, None), (3, 12, 6, None), (3, 6, 3, None), (3, 3, 0, None), (1, 4, 1, None),
    (2, 8, 4, None), (3, 12, 1, None), (3, 11, 4, None), (1, 6, 3, None), (3, 7, 2, 2), (2, 9, 3, 5), (3, 8, 4, 1),
]  # fmt: skip
"""Block, window, sink, first block."""


@pytest.mark.parametrize(("block", "window", "sink_frames", "first"), WINDOWS, ids=str)
@pytest.mark.parametrize("sink", ["global", "local"])
@pytest.mark.parametrize("rope", ["relative", "absolute"])
def test_latents_are_those_of_longlives_rolling_cache(
    model: Model,
    generator: Generator,
    prompts: list[Prompt],
    block: int,
    window: int,
    sink_frames: int,
    first: int | None,
    sink: Literal["global", "local"],
    rope: Literal["relative", "absolute"],
) -> None:
    config = StreamConfig(3, 16, 32, block, window, sink_frames, sink, rope, first_block_frames=first)
    switches = {0: prompts[0], 1: prompts[1], 3: prompts[2], 6: prompts[0], 9: prompts[1]}
    ours = roll(generator, generator.open(config), 11, switches)
    torch.testing.assert_close(ours, roll_longlive(model.transformer, config, 11, switches), rtol=0, atol=1e-5)


def test_a_window_of_21_frames_in_blocks_of_one_is_longlives(
    model: Model, generator: Generator, prompts: list[Prompt]
) -> None:
    config = StreamConfig(3, 16, 32, 1, 21, 0, steps=(1000, 500))
    switches = {0: prompts[0], 5: prompts[1], 23: prompts[2]}
    ours = roll(generator, generator.open(config), 26, switches)
    torch.testing.assert_close(ours, roll_longlive(model.transformer, config, 26, switches), rtol=0, atol=1e-5)


class MovedWindow(SinkWindow):
    """The same window ten million frames later in the stream, as far as positions go."""

    def place(self, first_frame: int, frames: int, *, repeat: bool) -> Placement:
        return _moved(super().place(first_frame, frames, repeat=repeat))

    def place_recache(self, next_frame: int) -> Placement:
        return _moved(super().place_recache(next_frame))


def _moved(place: Placement) -> Placement:
    by = 10_000_000
    fixed = tuple(FixedSlot(slot, position + by) for slot, position in place.fixed)
    return replace(place, positions=tuple(position + by for position in place.positions), fixed=fixed)


@pytest.mark.parametrize("keep_sink", [True, False], ids=["global sink", "local sink"])
def test_positions_ten_million_frames_later_make_the_same_latents(
    model: Model, generator: Generator, prompts: list[Prompt], keep_sink: bool
) -> None:
    config = StreamConfig(3, 16, 32, sink="global" if keep_sink else "local")
    switches = {0: prompts[0], 3: prompts[2], 6: prompts[1]}
    stream = generator.open(config)
    stream.policy = MovedWindow(12, 3, keep_sink=keep_sink)
    ours = roll(generator, stream, 8, switches)
    torch.testing.assert_close(ours, roll_longlive(model.transformer, config, 8, switches), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["rollout_absolute", "rollout_relative"])
def test_bf16_latents_stay_within_a_percent_of_longlives(name: str) -> None:
    recording = Recording(RECORDINGS / f"{name}.safetensors")
    transformer = CausalTransformer(recording.transformer())
    transformer.load_state_dict(recording.weights("model."))
    transformer.bfloat16()
    generator = denoiser_for(transformer)
    switches = {block: recording.prompt(i, row=0) for i, block in enumerate((0, 3, 7))}
    ours = roll(generator, generator.open(recording.stream()), 9, switches).float()
    wanted = roll_longlive(transformer, recording.stream(), 9, switches).float()
    assert (ours - wanted).square().mean().sqrt() <= 0.01 * wanted.square().mean().sqrt()
    assert (ours - wanted).abs().max() <= 0.1


@given(sink=st.integers(0, 5), ring=st.integers(1, 6), frames=st.integers(1, 60))
def test_the_sink_and_the_newest_frames_lie_in_slots_of_their_own(sink: int, ring: int, frames: int) -> None:
    window = SinkWindow(sink + ring, sink)
    kept = set(range(min(sink, frames))) | set(range(max(0, frames - ring), frames))
    assert sorted(map(window.slot, kept)) == list(range(min(frames, sink + ring)))


@given(sink=st.integers(0, 5), block=st.integers(1, 4), ring=st.integers(4, 8), number=st.integers(0, 30))
def test_the_window_behind_a_block_is_one_run_of_positions(sink: int, block: int, ring: int, number: int) -> None:
    window, first = SinkWindow(sink + ring, sink), number * block
    place = window.place(first, block, repeat=False)
    end = first + block
    positions = dict(place.fixed)
    older = range(0 if end <= window.frames else sink, end) if end <= window.frames else range(end - ring, end)
    positions |= {window.slot(frame): frame for frame in older}
    assert sorted(positions) == list(range(place.used))
    assert sorted(positions.values()) == list(range(end - place.used, end))


@pytest.mark.parametrize(
    ("first_frame", "slots"),
    [(0, (0, 1, 2)), (3, (NOT_WRITTEN, 4, 5)), (6, (6, 7, 8))],
    ids=["the first block", "a block half in the sink", "a block behind it"],
)
def test_a_repeat_leaves_frames_of_the_sink_alone(first_frame: int, slots: tuple[int, ...]) -> None:
    window = SinkWindow(frames=11, sink=4)
    assert window.place(first_frame, 3, repeat=True).slots == (slots,)
    assert window.place(first_frame, 3, repeat=False).slots == (tuple(range(first_frame, first_frame + 3)),)
    assert window.keeps_first_write(first_frame, 3) == (NOT_WRITTEN in slots)


def test_an_early_recache_covers_everything() -> None:
    for window in (LONGLIVE, replace(LONGLIVE, keep_sink=False)):
        assert window.place_recache(12) == Placement((tuple(range(12)),), tuple(range(12)), used=12)


def test_a_recache_that_keeps_the_sink_covers_the_last_nine_frames() -> None:
    place = LONGLIVE.place_recache(27)
    assert place.positions == tuple(range(18, 27))
    assert place.slots == ((9, 10, 11, 3, 4, 5, 6, 7, 8),)
    assert place.fixed == (FixedSlot(0, 15), FixedSlot(1, 16), FixedSlot(2, 17))


def test_a_recache_that_does_not_keep_it_moves_the_oldest_frames_there() -> None:
    place = replace(LONGLIVE, keep_sink=False).place_recache(27)
    assert place.positions == tuple(range(15, 27))
    assert place.slots == ((0, 1, 2, 9, 10, 11, 3, 4, 5, 6, 7, 8),)


def test_under_absolute_positions_nothing_moves() -> None:
    window = replace(LONGLIVE, moving_sink=False)
    assert window.raw_frames == 0
    assert window.place(30, 3, repeat=False).fixed == window.place_recache(30).fixed == ()

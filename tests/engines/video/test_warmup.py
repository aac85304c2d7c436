"""What is made once, before the first viewer comes, and stays of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from benchmarks.host_time import Idle, IdleRunner
from engines.cache.kv_cache import cache_size
from engines.config.presets import preset
from engines.config.video_stream import LOOPS, Loop, VideoStreamConfig
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.input import InputEncoder
from engines.video.snapshot import restore, take_light
from engines.video.stream import VideoStream
from engines.video.warmup import block_seconds, warm_up
from tests.support.fake_capture import Recordings
from tests.support.generators import denoiser_for
from tests.support.videos import block_input


class Warm(NamedTuple):
    """A generator that computes nothing and is warm for two streams at once, and its recordings."""

    video: VideoGenerator
    recordings: Recordings
    progress: list[int]

    def open(self, config: VideoStreamConfig, blocks: int = 0) -> VideoStream:
        """A stream so many blocks of which have begun, under a prompt."""
        stream = self.video.open(config)
        self.prompt(stream, "first")
        self.go_on([stream], blocks)
        return stream

    def prompt(self, stream: VideoStream, text: str) -> None:
        self.video.set_prompt(stream, Prompt(text, torch.ones(1, self.video.beside.config.text_dim)))

    def go_on(self, streams: Sequence[VideoStream], blocks: int) -> None:
        for _ in range(blocks):
            inputs = [block_input(one.config, one.entered, opening=one.opening) for one in streams]
            self.video.generate(streams, inputs)


@pytest.fixture
def warm(encoder: InputEncoder, clip: VideoStreamConfig) -> Warm:
    transformer, recordings = Idle(preset("tiny").transformer), Recordings()
    runner = IdleRunner(transformer, recordings)
    size = cache_size(2, clip, transformer.config)
    video = VideoGenerator(denoiser_for(transformer, runner=runner, size=size, batch=2))
    return Warm(video, recordings, [step.done for step in warm_up(video, encoder, clip, streams=2)])


def test_every_size_is_recorded_of_openings_and_of_as_many_rows_as_two_streams_can_have(warm: Warm) -> None:
    assert warm.progress == [0, 1, 2]
    assert warm.recordings.made == 2 + 6


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_recorded_once_all_is_warm(warm: Warm, clip: VideoStreamConfig, loop: Loop) -> None:
    made, config = warm.recordings.made, replace(clip, loop=loop)
    streams = [warm.open(config, blocks=1), warm.open(config)]
    warm.go_on(streams, 9)
    warm.prompt(streams[0], "second")
    warm.go_on(streams, 4)
    warm.go_on(streams[:1], 2)
    assert warm.recordings.made == made


def test_nor_is_it_where_loops_differ_and_change(warm: Warm, clip: VideoStreamConfig) -> None:
    made = warm.recordings.made
    streams = [warm.open(replace(clip, loop=loop)) for loop in LOOPS]
    warm.go_on(streams, 8)
    for stream, loop in zip(streams, reversed(LOOPS), strict=True):
        warm.video.flush(stream)
        warm.video.use_loop(stream, loop)
        warm.go_on(streams, 4)
    assert warm.recordings.made == made


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_nor_is_it_where_rows_fill_up_again_beside_others(
    warm: Warm, clip: VideoStreamConfig, blocks: int
) -> None:
    made, streams = warm.recordings.made, [warm.open(clip) for _ in range(2)]
    warm.go_on(streams, 7)
    warm.video.flush(streams[0])
    warm.go_on(streams, blocks)
    warm.video.flush(streams[1])
    warm.go_on(streams, 4)
    assert warm.recordings.made == made


def test_nor_is_it_where_a_stream_opens_anew_or_from_a_snapshot(warm: Warm, clip: VideoStreamConfig) -> None:
    made, streams = warm.recordings.made, [warm.open(clip) for _ in range(2)]
    warm.go_on(streams, 20)
    light = take_light(warm.video, streams[0])
    warm.video.flush(streams[1])
    warm.video.reopen(streams[1])
    warm.go_on(streams, 5)
    warm.video.close(streams[0])
    warm.go_on([restore(warm.video, light), streams[1]], 5)
    assert warm.recordings.made == made


def test_it_leaves_nothing_open_and_neither_does_timing_a_block(
    warm: Warm, encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    assert min(block_seconds(warm.video, encoder, clip)) > 0
    for _ in range(2):
        warm.open(clip)

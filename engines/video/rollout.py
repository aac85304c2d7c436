"""The passes that make the blocks of video streams: a plain block's steps, and the tick of a stream batch.

A pass changes nothing of a stream but slots, means and queues, and the records that it has left of these make it
choose the same slots when it is made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.prompt_kv import PromptKV
from engines.cache.rolling_window import Lane, Placed
from engines.cache.window import Placement
from engines.device.host_copy import to_device
from engines.runner.protocol import ModelRunner
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import FlowSchedule, Level
from engines.sampling.motion_noise import mix
from engines.streaming.rollout import check_cancelled
from engines.video.input import BlockInput
from engines.video.stream import BatchRow, BegunBlock, VideoStream

KEPT_SCHEDULES = 256
"""First steps follow the motion: some hundred timesteps for a stream."""


class Made(NamedTuple):
    """What a plain block leaves: clean latents [frames, channels, h/8, w/8], and how far the window is."""

    latents: Tensor
    lane: Lane


class TickRow(NamedTuple):
    """A row of a tick: the step it runs, what it runs over, and how far its window is afterwards."""

    step: int
    row: BatchRow
    placed: Placed


class Ticked(NamedTuple):
    """What a tick leaves of one stream.

    Args:
        finished: the latents of the block that came out, if one did.
        rows: the blocks that are on their way.
        progress: how far the windows are.

    """

    finished: Tensor | None
    rows: tuple[BatchRow | None, ...]
    progress: tuple[Lane, ...]


class VideoRollout:
    """Runs passes over streams. Those of one call need pictures, frames, steps and windows of one shape."""

    def __init__(self, runner: ModelRunner, device: torch.device) -> None:
        self._runner = runner
        self._device = device

    def plain(
        self, streams: Sequence[VideoStream], inputs: Sequence[BlockInput], cancelled: Event | None
    ) -> list[Made]:
        """All steps of each stream's next block, in its first window; what a failed call has run counts.

        All streams have begun the block as far. Raises Cancelled between two steps once that is set.
        """
        begun = [self._begun(stream, block) for stream, block in zip(streams, inputs, strict=True)]
        noise = [self._noise(stream) for stream in streams]
        for step in range(begun[0].step, streams[0].steps):
            check_cancelled(cancelled, step, streams[0].steps)
            placed = [_placed(stream, at, step) for stream, at in zip(streams, begun, strict=True)]
            rows = [
                _row(stream, 0, at.prompt, stream.position, here, _level(stream, step, at.input))
                for stream, at, here in zip(streams, begun, placed, strict=True)
            ]
            more = torch.stack([drawn[step + 1] for drawn in noise]) if step + 1 < streams[0].steps else None
            x = self._runner.prepare(rows).denoise(torch.stack([at.latents for at in begun]), more)
            begun = [
                at._replace(step=step + 1, latents=latents.clone(), lane=here.after)
                for at, latents, here in zip(begun, x, placed, strict=True)
            ]
            for stream, at in zip(streams, begun, strict=True):
                stream.begun = at
        return [Made(at.latents, at.lane) for at in begun]

    def tick(self, streams: Sequence[VideoStream], inputs: Sequence[BlockInput | None]) -> list[Ticked]:
        """One pass over the rows of each stream, the first of which is its next block where there is an input."""
        ticks = [list(self._tick_rows(stream, block)) for stream, block in zip(streams, inputs, strict=True)]
        rows = [
            _row(stream, at.step, at.row.prompt, at.row.position, at.placed, _level(stream, at.step, block))
            for stream, block, tick in zip(streams, inputs, ticks, strict=True)
            for at in tick
        ]
        every = [(stream, at) for stream, tick in zip(streams, ticks, strict=True) for at in tick]
        noise = torch.stack([self._next_noise(stream, at) for stream, at in every])
        x = self._runner.prepare(rows).denoise(torch.stack([at.row.latents for _, at in every]), noise)
        made = iter([latents.clone() for latents in x])
        return [_ticked(stream, tick, made) for stream, tick in zip(streams, ticks, strict=True)]

    def empty_rows(self, stream: VideoStream) -> tuple[BatchRow, ...]:
        """Rows from the second step on that no block has reached: zeros, at the next block's position."""
        shape = stream.recent.last_block().shape[1:]
        zeros = torch.zeros(stream.config.block_frames, *shape, dtype=stream.recent.last_block().dtype)
        here, prompt = to_device(zeros, self._device), stream.require_prompt_kv()
        return (BatchRow(None, here, None, stream.position, prompt, stream.entered),) * (stream.steps - 1)

    def _begun(self, stream: VideoStream, block: BlockInput) -> BegunBlock:
        """Where the block stands."""
        if is_resumed(stream, block):
            assert stream.begun is not None
            return stream.begun
        x = mix(_here(block.latents), self._noise(stream)[0], block.noise_scale)
        return BegunBlock(block, stream.require_prompt_kv(), 0, x, stream.progress[0])

    def _noise(self, stream: VideoStream) -> Tensor:
        """All draws of the next block, [draws, frames, channels, h/8, w/8]."""
        return stream.noise_prefetcher.get(stream.entered).to(self._device, non_blocking=True)

    def _tick_rows(self, stream: VideoStream, block: BlockInput | None) -> Iterator[TickRow]:
        frames = stream.config.block_frames
        if block is not None:
            noise = self._noise(stream)
            x = mix(_here(block.latents), noise[0], block.noise_scale)
            entering = BatchRow(block.number, x, noise, stream.position, stream.require_prompt_kv())
            yield TickRow(0, entering, stream.window.place(stream.progress[0], stream.position, frames))
        for step, row in enumerate(stream.rows, 1):
            if row is not None:
                yield TickRow(step, row, stream.window.place(stream.progress[step], row.position, frames))

    def _next_noise(self, stream: VideoStream, at: TickRow) -> Tensor:
        """What is added to a row's prediction; at the last step of a block nothing is."""
        if at.step + 1 == stream.steps:
            return torch.zeros_like(at.row.latents)
        if at.row.noise is not None:
            return at.row.noise[at.step + 1]
        # A row without a block has a draw of its own, behind those of the block that enters with it, if one does.
        drawn = stream.noise.draw(at.row.beside, stream.steps + at.step, tuple(at.row.latents.shape))
        return to_device(drawn.to(at.row.latents.dtype), self._device)


def is_resumed(stream: VideoStream, block: BlockInput) -> bool:
    """Whether steps of the next plain block that have run are of use: the same input, under the same prompt."""
    begun = stream.begun
    return begun is not None and begun.input is block and begun.prompt is stream.prompt_kv


def _placed(stream: VideoStream, at: BegunBlock, step: int) -> Placed:
    """What a step of a plain block does to the window.

    As published, each moves on as a block of its own until all have; else the later ones stay where the first was.
    """
    frames = at.input.latents.shape[0]
    if stream.config.exact:
        return stream.window.place(at.lane, stream.position, frames, passes=stream.steps)
    return stream.window.place(stream.progress[0], stream.position, frames)


def _row(stream: VideoStream, lane: int, prompt: PromptKV, position: int, placed: Placed, level: Level) -> Row:
    config, write = stream.config, placed.write
    frames = placed.after.seen - position
    positions = tuple(range(position, position + frames))
    placement = Placement((tuple(range(frames)),), positions, write.filled)
    return Row(stream.lanes[lane], prompt, placement, TokenGrid(config.rows, config.columns), level, write)


def _level(stream: VideoStream, step: int, block: BlockInput | None) -> Level:
    """Where a step runs; the first one where the block's input says."""
    steps = stream.config.steps
    first = block.timestep if step == 0 and block is not None else steps[0]
    return _schedule((first, *steps[1:]), stream.config.shift).levels[step]


@lru_cache(KEPT_SCHEDULES)
def _schedule(steps: tuple[int, ...], shift: float) -> FlowSchedule:
    return FlowSchedule(steps, shift, "nearest")


def _ticked(stream: VideoStream, tick: Sequence[TickRow], made: Iterator[Tensor]) -> Ticked:
    progress, after = list(stream.progress), dict[int, BatchRow]()
    for at in tick:
        progress[at.step] = at.placed.after
        after[at.step + 1] = replace(at.row, latents=next(made), beside=at.row.beside + 1)
    last = after.pop(stream.steps, None)
    finished = None if last is None or last.block is None else last.latents
    return Ticked(finished, tuple(after.get(step) for step in range(1, stream.steps)), tuple(progress))


def _here(latents: Tensor) -> Tensor:
    """Latents that another queue made: their memory stays until this one has read them."""
    if latents.is_cuda:
        latents.record_stream(torch.cuda.current_stream(latents.device))
    return latents

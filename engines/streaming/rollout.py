"""The passes that make a block: denoising steps, the clean pass, the KV recache.

Each works on streams at a block boundary and changes nothing of them but their slots; what it overwrites there
the same pass would overwrite again, so a pass that failed can simply be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.prompt_kv import PromptKV, PromptPool
from engines.cache.window import Placement
from engines.device.host_copy import to_device
from engines.errors import Cancelled
from engines.runner.protocol import ModelRunner
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import CLEAN, Level, add_noise
from engines.streaming.state import SinkPass
from engines.streaming.stream import Stream


class Denoised(NamedTuple):
    """Clean latents [frames, channels, h/8, w/8] of a block, and the passes that wrote the sink for good."""

    latents: Tensor
    sink_passes: list[SinkPass]


class Rollout:
    """Runs passes over streams. Those of one call need pictures, frames, steps and windows of one shape."""

    def __init__(self, runner: ModelRunner, prompts: PromptPool, device: torch.device) -> None:
        self._runner = runner
        self._prompts = prompts
        self._device = device

    def denoise(self, streams: Sequence[Stream], cancelled: Event | None) -> list[Denoised]:
        """All denoising steps of each stream's next block. Raises Cancelled between two once that is set.

        On CUDA a step has only been begun when the next one comes, see `Generator.generate`.
        """
        noise = self._noise(streams)
        steps = len(streams[0].schedule)
        x, sinks = _started(streams, noise[0]), [list[SinkPass]() for _ in streams]
        for step in range(steps):
            check_cancelled(cancelled, step, steps)
            rows = [_next_row(stream, step) for stream in streams]
            bound = self._runner.prepare(rows)
            if _is_first_pass(streams[0], step):
                bound.rotate_slots()
            for stream, latents, passes in zip(streams, x, sinks, strict=True):
                if _writes_sink_for_good(stream, step):
                    passes.append(_sink_pass(stream, step, latents))
            x = bound.denoise(x, noise[step + 1] if step + 1 < steps else None)
        # Copies, because a row keeps the whole batch in memory.
        return [Denoised(latents.clone(), passes) for latents, passes in zip(x, sinks, strict=True)]

    def write_context(self, streams: Sequence[Stream]) -> None:
        """The clean pass of each stream's last block."""
        rows = []
        for stream in streams:
            frames = stream.recent.last_block().shape[0]
            placement = stream.policy.place(stream.latent_frames - frames, frames, repeat=True)
            rows.append(_row(stream, 0, placement, CLEAN, stream.require_prompt_kv()))
        bound = self._runner.prepare(rows)
        bound.write_kv(torch.stack([stream.recent.last_block() for stream in streams]))
        for stream in streams:
            stream.context_written()

    def recache(self, streams: Sequence[Stream]) -> None:
        """Recompute the windows' keys and values under the prompts in force, for as many frames of each stream.

        All frames of the pass see each other, as in LongLive, whose block mask is never applied (issue 19
        there). Where a denoising step writes what later blocks see, the latents go back to that step's noise, with
        their own blocks' draws.
        """
        placements = [stream.policy.place_recache(stream.latent_frames) for stream in streams]
        sinks: list[list[SinkPass]] = [[] for _ in streams]
        for lane in range(streams[0].config.lanes):
            rows, latents = [], []
            for stream, placement in zip(streams, placements, strict=True):
                level = _context_level(stream, lane)
                rows.append(_row(stream, lane, placement, level, stream.require_prompt_kv()))
                latents.append(self._context(stream, lane, placement.frames))
            bound = self._runner.prepare(rows)
            bound.rotate_slots()
            bound.write_kv(torch.stack(latents))
            for stream, row, frames, passes in zip(streams, rows, latents, sinks, strict=True):
                if row.placement.slots[0][0] < stream.config.sink_frames:
                    first_frame, timestep = row.placement.positions[0], row.level.timestep
                    passes.append(SinkPass(first_frame, frames, timestep, stream.require_prompt(), lane))
        for stream, passes in zip(streams, sinks, strict=True):
            stream.recached(passes)

    def replay_sink_pass(self, stream: Stream, sink_pass: SinkPass) -> None:
        """Make a pass that wrote the sink once more. The window has not rolled at such a pass.

        Raises PoolFull if its prompt finds no room.
        """
        placement = stream.policy.place(sink_pass.first_frame, sink_pass.latents.shape[0], repeat=False)
        prompt = self._prompts.take(sink_pass.prompt, partial(self._runner.encode_prompt, sink_pass.prompt))
        try:
            row = _row(stream, sink_pass.lane, placement, Level(sink_pass.timestep), prompt)
            self._runner.prepare([row]).write_kv(sink_pass.latents.unsqueeze(0))
        finally:
            self._prompts.give_back(prompt)

    def _noise(self, streams: Sequence[Stream]) -> Tensor:
        """[draws, B, frames, channels, h/8, w/8]: where the next blocks begin, and what is added at each step."""
        drawn = [
            stream.noise_prefetcher.get(stream.blocks).to(self._device, non_blocking=True) for stream in streams
        ]
        return torch.stack(drawn, dim=1)

    def _context(self, stream: Stream, lane: int, frames: int) -> Tensor:
        """The last `frames` latent frames as the pass saw them that wrote their keys and values."""
        latents, level = stream.recent.last(frames), _context_level(stream, lane)
        if level is CLEAN:
            return latents
        shapes = [(block.shape[0], *latents.shape[1:]) for block in stream.recent.last_blocks(frames)]
        drawn = []
        for block, shape in enumerate(shapes, stream.blocks - len(shapes)):
            draw = lane if stream.config.context == "steps" else len(stream.config.steps_of(block)) - 1
            drawn.append(stream.noise.draw(block, draw, shape))
        noise = torch.cat(drawn)[-frames:].to(latents.dtype)
        return add_noise(latents, to_device(noise, self._device), level.sigma)


def check_cancelled(cancelled: Event | None, step: int, steps: int) -> None:
    """Raise Cancelled before one of a block's steps, once that is set."""
    if cancelled is not None and cancelled.is_set():
        raise Cancelled(f"cancelled before step {step} of {steps}")


def _row(stream: Stream, lane: int, placement: Placement, level: Level, prompt: PromptKV) -> Row:
    grid = TokenGrid(stream.config.rows, stream.config.columns)
    return Row(stream.lanes[lane], prompt, placement, grid, level)


def _next_row(stream: Stream, step: int) -> Row:
    """Of a denoising step of the next block."""
    repeat = not _is_first_pass(stream, step)
    placement = stream.policy.place(stream.latent_frames, stream.block_frames, repeat=repeat)
    lane = step if len(stream.lanes) > 1 else 0
    return _row(stream, lane, placement, stream.schedule.levels[step], stream.require_prompt_kv())


def _is_first_pass(stream: Stream, step: int) -> bool:
    """Whether no earlier step of a block runs over the same window."""
    return step == 0 or len(stream.lanes) > 1


def _started(streams: Sequence[Stream], noise: Tensor) -> Tensor:
    """Where the next blocks begin: noise, scaled where their first level is not all noise."""
    levels = [stream.config.start_level for stream in streams]
    if all(level == 1 for level in levels):
        return noise
    return torch.stack([drawn * level for drawn, level in zip(noise, levels, strict=True)])


def _writes_sink_for_good(stream: Stream, step: int) -> bool:
    """Whether what this step leaves in the sink is what stays there (`SinkWindow.place`)."""
    if stream.config.context == "steps":
        return stream.latent_frames < stream.config.sink_frames
    return step == 0 and stream.policy.keeps_first_write(stream.latent_frames, stream.block_frames)


def _sink_pass(stream: Stream, step: int, latents: Tensor) -> SinkPass:
    lane, timestep = step if len(stream.lanes) > 1 else 0, stream.schedule.levels[step].timestep
    return SinkPass(stream.latent_frames, latents.clone(), timestep, stream.require_prompt(), lane)


def _context_level(stream: Stream, lane: int) -> Level:
    """Where the passes run whose keys and values later blocks see in a window."""
    if stream.config.context == "clean":
        return CLEAN
    levels = stream.schedules[1].levels
    return levels[lane if stream.config.context == "steps" else -1]

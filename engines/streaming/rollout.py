"""The passes that make a block: denoising steps, the clean pass, the KV recache.

Each works on streams at a block boundary and changes nothing of them but their slots; what it overwrites there
the same pass would overwrite again, so a pass that failed can simply be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.prompt_kv import PromptKV, PromptPool
from engines.cache.window import Placement
from engines.errors import Cancelled
from engines.runner.protocol import ModelRunner
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import CLEAN, Level
from engines.streaming.state import SinkPass
from engines.streaming.stream import Stream


class Denoised(NamedTuple):
    """Clean latents [frames, channels, h/8, w/8] of a block, and the pass that wrote the sink for good, if any."""

    latents: Tensor
    sink_pass: SinkPass | None


class Rollout:
    """Runs passes over streams. Those of one call need pictures, frames and steps of one shape."""

    def __init__(self, runner: ModelRunner, prompts: PromptPool, device: torch.device) -> None:
        self._runner = runner
        self._prompts = prompts
        self._device = device

    def denoise(self, streams: Sequence[Stream], cancelled: Event | None) -> list[Denoised]:
        """All denoising steps of each stream's next block. Raises Cancelled between two once that is set.

        On CUDA a step has only been begun when the next one comes, see `Generator.generate`.
        """
        noise = self._noise(streams)
        levels = list(zip(*(stream.schedule.levels for stream in streams), strict=True))
        x = noise[0]
        for step, level in enumerate(levels):
            if cancelled is not None and cancelled.is_set():
                raise Cancelled(f"cancelled before step {step} of {len(levels)}")
            rows = [self._next_row(stream, at, repeat=step > 0) for stream, at in zip(streams, level, strict=True)]
            bound = self._runner.prepare(rows)
            if step == 0:
                bound.rotate_slots()
            x = bound.denoise(x, noise[step + 1] if step + 1 < len(levels) else None)
        # Copies, because a row keeps the whole batch in memory.
        return [
            Denoised(latents.clone(), _permanent_sink_pass(stream, drawn))
            for stream, latents, drawn in zip(streams, x, noise[0], strict=True)
        ]

    def write_context(self, streams: Sequence[Stream]) -> None:
        """The clean pass of each stream's last block."""
        rows = []
        for stream in streams:
            frames = stream.recent.last_block().shape[0]
            placement = stream.kv.policy.place(stream.latent_frames - frames, frames, repeat=True)
            rows.append(_row(stream, placement, CLEAN, stream.require_prompt()))
        bound = self._runner.prepare(rows)
        bound.write_kv(torch.stack([stream.recent.last_block() for stream in streams]))
        for stream in streams:
            stream.context_written()

    def recache(self, streams: Sequence[Stream]) -> None:
        """Recompute the window's keys and values under the prompts in force, for as many frames of each stream.

        All frames of the pass see each other, as in LongLive, whose block mask is never applied (issue 19
        there).
        """
        rows, latents = [], []
        for stream in streams:
            placement = stream.kv.policy.place_recache(stream.latent_frames)
            rows.append(_row(stream, placement, CLEAN, stream.require_prompt()))
            latents.append(stream.recent.last(placement.frames))
        bound = self._runner.prepare(rows)
        bound.rotate_slots()
        bound.write_kv(torch.stack(latents))
        for stream, row, frames in zip(streams, rows, latents, strict=True):
            stream.recached(_recached_sink(stream, row.placement, frames))

    def replay_sink_pass(self, stream: Stream, sink_pass: SinkPass) -> None:
        """Make a pass that wrote the sink once more. The window has not rolled at such a pass.

        Raises PoolFull if its prompt finds no room.
        """
        placement = stream.kv.policy.place(sink_pass.first_frame, sink_pass.latents.shape[0], repeat=False)
        prompt = self._prompts.take(sink_pass.prompt, self._runner.encode_prompt)
        try:
            row = _row(stream, placement, Level(sink_pass.timestep), prompt)
            self._runner.prepare([row]).write_kv(sink_pass.latents.unsqueeze(0))
        finally:
            self._prompts.give_back(prompt)

    def _next_row(self, stream: Stream, level: Level, *, repeat: bool) -> Row:
        placement = stream.kv.policy.place(stream.latent_frames, stream.block_frames, repeat=repeat)
        return _row(stream, placement, level, stream.require_prompt())

    def _noise(self, streams: Sequence[Stream]) -> Tensor:
        """[draws, B, frames, channels, h/8, w/8]: where the next blocks begin, and what is added at each step."""
        drawn = [
            stream.noise_prefetcher.get(stream.blocks).to(self._device, non_blocking=True) for stream in streams
        ]
        return torch.stack(drawn, dim=1)


def _row(stream: Stream, placement: Placement, level: Level, prompt: PromptKV) -> Row:
    return Row(stream.kv, prompt, placement, TokenGrid(stream.config.rows, stream.config.columns), level)


def _permanent_sink_pass(stream: Stream, noise: Tensor) -> SinkPass | None:
    """The first pass of a block some of whose frames no later pass writes (`SinkWindow.place`)."""
    if not stream.kv.policy.keeps_first_write(stream.latent_frames, stream.block_frames):
        return None
    timestep = stream.schedule.levels[0].timestep
    return SinkPass(stream.latent_frames, noise.clone(), timestep, stream.require_prompt().prompt)


def _recached_sink(stream: Stream, placement: Placement, latents: Tensor) -> SinkPass | None:
    """The recache, if it has written the sink."""
    if placement.slots[0][0] >= stream.config.sink_frames:
        return None
    return SinkPass(placement.positions[0], latents, CLEAN.timestep, stream.require_prompt().prompt)

"""The passes that make a block: denoising steps, the clean pass, the KV recache.

Each works on streams at a block boundary and changes nothing of them but their slabs; what it overwrites there
the same pass would overwrite again, so a pass that failed can simply be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.positions import PassPositions
from engines.cache.prompt_kv import PromptKV
from engines.cache.window import SlotMapping
from engines.errors import Cancelled
from engines.runner.batch import PassInput
from engines.runner.modulation import batched
from engines.runner.protocol import ModelRunner
from engines.sampling.flow_schedule import CLEAN_TIMESTEP
from engines.streaming.state import SinkPass
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer


class Denoised(NamedTuple):
    """Clean latents [frames, channels, h/8, w/8] of a block, and the pass that wrote the sink for good, if any."""

    latents: Tensor
    sink_pass: SinkPass | None


class Rollout:
    """Runs passes of `transformer` over streams. Those of one call need pictures and steps of one shape."""

    def __init__(self, transformer: CausalTransformer, runner: ModelRunner) -> None:
        self._transformer = transformer
        self._runner = runner

    def read_prompt(self, prompt: Prompt) -> PromptKV:
        """What passes need of a prompt."""
        rows = prompt.rows.to(self._transformer.dtype)
        if self._transformer.device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()  # Else the host would wait for the copy, and all work before it.
        here = replace(prompt, rows=rows.to(self._transformer.device, non_blocking=True))
        return PromptKV.of(self._transformer, here, folded=self._runner.folds_prompts)

    def denoise(self, streams: Sequence[Stream], cancelled: Event | None) -> list[Denoised]:
        """All denoising steps of each stream's next block. Raises Cancelled between two once that is set.

        On CUDA a step has only been begun when the next one comes, see `Generator.generate`.
        """
        steps = len(streams[0].schedule)
        noise = self._noise(streams)
        schedules = [stream.schedule for stream in streams]
        first, later = self._next_views(streams)
        todo, x = self._runner.prepare(first), noise[0]
        for step in range(steps):
            if cancelled is not None and cancelled.is_set():
                raise Cancelled(f"cancelled before step {step} of {steps}")
            if step == 1 and any(not view.placement.writes for view in later):
                todo = self._runner.prepare(later)
            at = batched([s.modulations.at(s.schedule.timesteps[step], x.shape[1]) for s in streams])
            flow = todo.denoise(x, at)
            x = self._runner.flow_step(schedules, x, flow, noise[step + 1] if step + 1 < steps else None, step)
        # Copies, because a row keeps the whole batch in memory.
        return [
            Denoised(latents.clone(), _frozen_sink_pass(stream, drawn))
            for stream, latents, drawn in zip(streams, x, noise[0], strict=True)
        ]

    def clean(self, streams: Sequence[Stream]) -> None:
        """The clean pass of each stream's last block."""
        views = []
        for stream in streams:
            placement = stream.slab.layout.placement(stream.blocks - 1, repeat=True)
            views.append(self._view(stream, placement, stream.require_prompt()[1]))
        self._write_kv(streams, CLEAN_TIMESTEP, [stream.recent[-1] for stream in streams], views)

    def recache_placement(self, stream: Stream) -> SlotMapping:
        """Where a KV recache before the stream's next block goes."""
        keep_sink = stream.config.sink == "global"
        return stream.slab.layout.recache_placement(stream.blocks, keep_sink=keep_sink)

    def recache(self, streams: Sequence[Stream]) -> list[SinkPass | None]:
        """Recompute the window's keys and values under the prompts in force, for as many blocks of each stream.

        All frames of the pass see each other, as in LongLive, whose block mask is never applied (issue 19
        there). Returns the pass where it has written a stream's sink.
        """
        views, latents, sink_passes = [], [], []
        for stream in streams:
            placement = self.recache_placement(stream)
            prompt, memory = stream.require_prompt()
            views.append(self._view(stream, placement, memory))
            latents.append(stream.last_blocks(len(placement.slots)))
            in_sink = placement.slots[0] < stream.config.sink_blocks
            sink_passes.append(
                SinkPass(placement.first_block, latents[-1], CLEAN_TIMESTEP, prompt) if in_sink else None
            )
        self._write_kv(streams, CLEAN_TIMESTEP, latents, views)
        return sink_passes

    def replay_sink_pass(self, stream: Stream, call: SinkPass) -> None:
        """Make a pass that wrote the sink once more. The window has not rolled at such a pass."""
        end = call.first_block + call.latents.shape[0] // stream.config.block_frames
        placement = SlotMapping(call.first_block, tuple(range(call.first_block, end)), end)
        view = self._view(stream, placement, self.read_prompt(call.prompt))
        self._write_kv([stream], call.timestep, [call.latents], [view])

    def _write_kv(
        self, streams: Sequence[Stream], timestep: float, latents: Sequence[Tensor], views: Sequence[PassInput]
    ) -> None:
        at = batched([stream.modulations.at(timestep, latents[0].shape[0]) for stream in streams])
        self._runner.prepare(views).write_kv(torch.stack(list(latents)), at)

    def _next_views(self, streams: Sequence[Stream]) -> tuple[list[PassInput], list[PassInput]]:
        """What the next block's first pass sees, and what its later ones do."""
        first, later = [], []
        for stream in streams:
            layout = stream.slab.layout
            view = self._view(stream, layout.placement(stream.blocks, repeat=False), stream.require_prompt()[1])
            first.append(view)
            later.append(replace(view, placement=layout.placement(stream.blocks, repeat=True)))
        return first, later

    def _view(self, stream: Stream, placement: SlotMapping, prompt: PromptKV) -> PassInput:
        config = stream.config
        turns = PassPositions.of(stream.grid, placement, config)
        return PassInput(stream.slab, prompt, placement, turns, (config.height, config.width))

    def _noise(self, streams: Sequence[Stream]) -> Tensor:
        """[draws, B, frames, channels, h/8, w/8]: where the next blocks begin, and what is added at each step."""
        device = self._transformer.device
        drawn = [stream.noise_prefetcher.get(stream.blocks).to(device, non_blocking=True) for stream in streams]
        return torch.stack(drawn, dim=1)


def _frozen_sink_pass(stream: Stream, noise: Tensor) -> SinkPass | None:
    """The first pass of a block whose sink slot is never rewritten (`WindowLayout.placement`)."""
    if stream.slab.layout.placement(stream.blocks, repeat=True).writes:
        return None
    return SinkPass(stream.blocks, noise.clone(), stream.schedule.timesteps[0], stream.require_prompt()[0])

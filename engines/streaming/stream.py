"""All that one stream owns, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engines.cache.kv_pool import KVRun
from engines.cache.prompt_kv import PromptKV
from engines.errors import StreamError
from engines.runner.modulation import ModulationCache
from engines.sampling.flow_schedule import CLEAN_TIMESTEP, FlowSchedule
from engines.sampling.noise import Noise
from engines.sampling.noise_prefetch import NoisePrefetcher
from engines.streaming.state import Block, LogEntry, SinkPass, StreamState
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache
from kernels.attention.rope import RopeTable


@dataclass(kw_only=True)
class Stream(StreamState):
    """The state of one stream, at a block boundary whenever the generator is not at work on it.

    `context_due`: the last block's clean pass has not run yet. `recache_due`: the window's keys and values are to
    be recomputed before the next block.
    """

    noise: Noise
    noise_prefetcher: NoisePrefetcher
    slab: KVRun
    grid: RopeTable
    schedule: FlowSchedule
    modulations: ModulationCache
    prompt: Prompt | None = None
    prompt_kv: PromptKV | None = None
    context_due: bool = False
    recache_due: bool = False
    sink_passes: list[SinkPass] = field(default_factory=list)

    @property
    def permanent_sink_passes(self) -> list[SinkPass]:
        """The passes that made the sink, if the next recache will leave it as it is."""
        rolled = self.blocks > self.config.window_blocks
        return self.sink_passes if rolled and self.config.sink == "global" else []

    def require_prompt(self) -> tuple[Prompt, PromptKV]:
        """The prompt in force; StreamError if none has been set."""
        if self.prompt is None or self.prompt_kv is None:
            raise StreamError("the stream has no prompt; set one before its first block")
        return self.prompt, self.prompt_kv

    def use_prompt(self, prompt: Prompt, memory: PromptKV) -> None:
        """Put a prompt in force; one that was set before the same block never was."""
        self.prompt, self.prompt_kv = prompt, memory
        self.recache_due = self.blocks > 0
        if self.log and self.log[-1][:2] == (self.blocks, "prompt"):
            self.log.pop()
        self.log.append(LogEntry(self.blocks, "prompt", prompt.text))

    def append(self, latents: Tensor, sink_pass: SinkPass | None, ready: torch.cuda.Event | None) -> Block:
        """Take over a finished block; `sink_pass` if one of its passes wrote the sink for good."""
        block = Block(self.blocks, latents, ready)
        self.recent.append(latents)
        if sink_pass is not None:
            self.sink_passes.append(sink_pass)
        self.blocks += 1
        self.context_due = True
        return block

    def context_written(self) -> None:
        """The last block's clean pass has run. The first block's has written the sink."""
        if self.blocks == 1 and self.config.sink_blocks > 0:
            self.sink_passes = [SinkPass(0, self.recent[-1], CLEAN_TIMESTEP, self.require_prompt()[0])]
        self.context_due = False

    def recached(self, sink_pass: SinkPass | None) -> None:
        """The recache has run; `sink_pass` if it wrote the sink.

        Once the window has rolled, a local sink is rewritten by every recache, so no pass need be remembered.
        """
        if sink_pass is not None:
            self.sink_passes = [sink_pass] if sink_pass.first_block == 0 else []
        self.recache_due = self.context_due = False

    def rebuilt(self, decoder: ConvCache | None) -> None:
        """Sink and decoder have been made anew; the rest of the window follows before the next block."""
        self.decoder = decoder
        self.context_due, self.recache_due = False, True
        self.log.append(LogEntry(self.blocks, "restore", ""))

    def close(self) -> None:
        """Let go of all tensors."""
        self.closed = True
        del self.slab, self.grid, self.modulations, self.noise_prefetcher
        self.recent.clear()
        self.sink_passes.clear()
        self.prompt = self.prompt_kv = self.decoder = None

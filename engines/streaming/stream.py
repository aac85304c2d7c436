"""All that one stream owns, in one object."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engines.cache.kv_pool import KVSlab
from engines.cache.prompt_kv import PromptMemory
from engines.config.geometry import pixel_frames
from engines.config.stream import StreamConfig
from engines.errors import StreamError
from engines.runner.modulation import ModulationTable
from engines.sampling.flow_schedule import CLEAN, FlowSchedule
from engines.sampling.noise import Noise
from engines.sampling.noise_prefetch import NoiseAhead
from engines.streaming.state import Block, LogEntry, SinkCall
from engines.text.prompt import Prompt
from engines.vae.conv_cache import History
from kernels.attention.rope import RopeTable


@dataclass
class Stream:
    """The state of one stream, at a block boundary whenever the generator is not at work on it.

    `blocks` counts what has been generated. `recent` holds the last blocks' latents: what a recache and a new
    decoder need. `clean_due`: the last block's clean pass has not run yet. `recache_due`: the window's keys
    and values are to be recomputed before the next block.
    """

    config: StreamConfig
    noise: Noise
    noise_ahead: NoiseAhead
    slab: KVSlab
    grid: RopeTable
    schedule: FlowSchedule
    modulations: ModulationTable
    recent: deque[Tensor]
    decoder: History | None
    prompt: Prompt | None = None
    prompt_memory: PromptMemory | None = None
    blocks: int = 0
    decoded_blocks: int = 0
    clean_due: bool = False
    recache_due: bool = False
    sink_calls: list[SinkCall] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    closed: bool = False

    @property
    def next_frame(self) -> int:
        """Pixel frame at which the next block begins."""
        return pixel_frames(self.blocks * self.config.block_frames)

    @property
    def lasting_sink_calls(self) -> list[SinkCall]:
        """The passes that made the sink, if the next recache will leave it as it is."""
        rolled = self.blocks > self.config.window_blocks
        return self.sink_calls if rolled and self.config.sink == "global" else []

    def require_open(self) -> None:
        """Raise StreamError if the stream has been closed."""
        if self.closed:
            raise StreamError(f"the stream was closed after block {self.blocks - 1}; open another one")

    def require_prompt(self) -> tuple[Prompt, PromptMemory]:
        """The prompt in force; StreamError if none has been set."""
        if self.prompt is None or self.prompt_memory is None:
            raise StreamError("the stream has no prompt; set one before its first block")
        return self.prompt, self.prompt_memory

    def last_blocks(self, count: int) -> Tensor:
        """Latents of the last `count` blocks, joined along the frames."""
        return torch.cat(list(self.recent)[len(self.recent) - count :])

    def require_decoded(self) -> None:
        """Raise StreamError if the decoder lags behind."""
        if self.decoder is not None and self.decoded_blocks != self.blocks:
            raise StreamError(
                f"{self.blocks} blocks are generated but {self.decoded_blocks} decoded; decode first"
            )

    def use_prompt(self, prompt: Prompt, memory: PromptMemory) -> None:
        """Put a prompt in force; one that was set before the same block never was."""
        self.prompt, self.prompt_memory = prompt, memory
        self.recache_due = self.blocks > 0
        if self.log and self.log[-1][:2] == (self.blocks, "prompt"):
            self.log.pop()
        self.log.append(LogEntry(self.blocks, "prompt", prompt.text))

    def append(self, latents: Tensor, sink_call: SinkCall | None, ready: torch.cuda.Event | None) -> Block:
        """Take over a finished block; `sink_call` if one of its passes wrote the sink for good."""
        block = Block(self.blocks, latents, ready)
        self.recent.append(latents)
        if sink_call is not None:
            self.sink_calls.append(sink_call)
        self.blocks += 1
        self.clean_due = True
        return block

    def cleaned(self) -> None:
        """The last block's clean pass has run. The first block's has written the sink."""
        if self.blocks == 1 and self.config.sink_blocks > 0:
            self.sink_calls = [SinkCall(0, self.recent[-1], CLEAN, self.require_prompt()[0])]
        self.clean_due = False

    def recached(self, sink_call: SinkCall | None) -> None:
        """The recache has run; `sink_call` if it wrote the sink.

        Once the window has rolled, a local sink is rewritten by every recache, so no pass need be remembered.
        """
        if sink_call is not None:
            self.sink_calls = [sink_call] if sink_call.first_block == 0 else []
        self.recache_due = self.clean_due = False

    def rebuilt(self, decoder: History | None) -> None:
        """Sink and decoder have been made anew; the rest of the window follows before the next block."""
        self.decoder = decoder
        self.clean_due, self.recache_due = False, True
        self.log.append(LogEntry(self.blocks, "restore", ""))

    def close(self) -> None:
        """Let go of all tensors."""
        self.closed = True
        del self.slab, self.grid, self.modulations, self.noise_ahead
        self.recent.clear()
        self.sink_calls.clear()
        self.prompt = self.prompt_memory = self.decoder = None

"""All that one stream owns, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engines.cache.kv_cache import StreamKV
from engines.cache.prompt_kv import PromptKV
from engines.cache.window import WindowPolicy
from engines.config.geometry import pixel_frames
from engines.config.stream import StreamConfig
from engines.errors import StreamError
from engines.sampling.flow_schedule import CLEAN, FlowSchedule
from engines.sampling.noise import Noise
from engines.sampling.noise_prefetch import NoisePrefetcher
from engines.streaming.state import Block, RecentLatents, SinkPass
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache


@dataclass
class Stream:
    """The state of one stream, at a block boundary whenever the generator is not at work on it.

    `blocks` counts what has been generated. `recent` holds the last blocks' latents: what a recache and a new
    decoder need. `context_due`: the last block's clean pass has not run yet. `recache_due`: the window's keys
    and values are to be recomputed before the next block. `lanes` are its windows: one, or one for each denoising
    step; none while the stream is suspended. `schedules` are the first block's and the later ones'.
    """

    config: StreamConfig
    policy: WindowPolicy
    noise: Noise
    noise_prefetcher: NoisePrefetcher
    lanes: tuple[StreamKV, ...]
    schedules: tuple[FlowSchedule, FlowSchedule]
    recent: RecentLatents
    decoder: ConvCache | None
    prompt: Prompt | None = None
    prompt_kv: PromptKV | None = None
    blocks: int = 0
    decoded_blocks: int = 0
    context_due: bool = False
    recache_due: bool = False
    sink_passes: list[SinkPass] = field(default_factory=list)
    rebuilt_before: list[int] = field(default_factory=list)
    closed: bool = False

    @property
    def schedule(self) -> FlowSchedule:
        """Of the next block."""
        return self.schedules[min(self.blocks, 1)]

    @property
    def latent_frames(self) -> int:
        """Latent frames generated: the next block's first one."""
        return self.config.blocks.latent_frames(self.blocks)

    @property
    def block_frames(self) -> int:
        """Latent frames of the next block."""
        return self.config.blocks.frames_of(self.blocks)

    @property
    def next_frame(self) -> int:
        """Pixel frame at which the next block begins."""
        return pixel_frames(self.latent_frames)

    @property
    def permanent_sink_passes(self) -> list[SinkPass]:
        """The passes that made the sink, if the next recache will leave it as it is."""
        return self.sink_passes if self.policy.is_permanent(self.latent_frames) else []

    def require_open(self) -> None:
        """Raise StreamError if the stream has been closed."""
        if self.closed:
            raise StreamError(f"the stream was closed after block {self.blocks - 1}; open another one")

    @property
    def is_suspended(self) -> bool:
        """Whether it has no window, and waits to be resumed."""
        return not self.closed and not self.lanes

    def require_window(self) -> None:
        """Raise StreamError if the stream has been closed, or is suspended."""
        self.require_open()
        if self.is_suspended:
            raise StreamError(f"the stream is suspended before block {self.blocks}; resume it first")

    def require_prompt(self) -> Prompt:
        """The prompt in force; StreamError if none has been set."""
        if self.prompt is None:
            raise StreamError("the stream has no prompt; set one before its first block")
        return self.prompt

    def require_prompt_kv(self) -> PromptKV:
        """Its keys and values."""
        self.require_prompt()
        assert self.prompt_kv is not None
        return self.prompt_kv

    def require_decoded(self) -> None:
        """Raise StreamError if the decoder lags behind."""
        if self.decoder is not None and self.decoded_blocks != self.blocks:
            raise StreamError(
                f"{self.blocks} blocks are generated but {self.decoded_blocks} decoded; decode first"
            )

    def use_prompt(self, prompt: Prompt, kv: PromptKV) -> None:
        """Put a prompt in force."""
        self.prompt, self.prompt_kv = prompt, kv
        self.recache_due = self.blocks > 0

    def append(self, latents: Tensor, sink_passes: Sequence[SinkPass], ready: torch.cuda.Event | None) -> Block:
        """Take over a finished block; `sink_passes` are those of its passes that wrote the sink for good."""
        block = Block(self.blocks, latents, ready)
        self.recent.append(latents)
        self.sink_passes += sink_passes
        self.context_due = self.config.context == "clean" or (self.config.context == "noisy" and self.blocks == 0)
        self.blocks += 1
        return block

    def context_written(self) -> None:
        """The last block's clean pass has run. The first block's has written the sink."""
        if self.blocks == 1 and self.config.sink_frames > 0:
            self.sink_passes = [SinkPass(0, self.recent.last_block(), CLEAN.timestep, self.require_prompt())]
        self.context_due = False

    def recached(self, sink_passes: Sequence[SinkPass]) -> None:
        """The recache has run; `sink_passes` if it wrote the sink, one for each window.

        Once the window has rolled, a local sink is rewritten by every recache, so no pass need be remembered.
        """
        if sink_passes:
            self.sink_passes = [made for made in sink_passes if made.first_frame == 0]
        self.recache_due = self.context_due = False

    def rebuilt(self, decoder: ConvCache | None) -> None:
        """Sink and decoder have been made anew; the rest of the window follows before the next block."""
        self.decoder = decoder
        self.context_due, self.recache_due = False, True
        if self.rebuilt_before[-1:] != [self.blocks]:
            self.rebuilt_before.append(self.blocks)

    def suspend(self) -> None:
        """Its window and its prompt's keys and values have been given back."""
        self.lanes, self.prompt_kv, self.decoder = (), None, None
        self.context_due = False

    def close(self) -> None:
        """Let go of all tensors."""
        self.closed = True
        del self.lanes, self.noise_prefetcher
        self.recent.clear()
        self.sink_passes.clear()
        self.prompt = self.prompt_kv = self.decoder = None

"""All that one video stream is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.kv_cache import StreamKV
from engines.cache.prompt_kv import PromptKV
from engines.cache.rolling_window import Lane, RollingWindow
from engines.config.geometry import pixel_frames
from engines.config.video_stream import Loop, VideoStreamConfig
from engines.errors import StreamError
from engines.sampling.noise import Noise
from engines.sampling.noise_prefetch import NoisePrefetcher
from engines.streaming.state import Block, RecentLatents
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache
from engines.video.input import BlockInput
from engines.video.kept_inputs import KeptInputs


@dataclass(frozen=True, eq=False)
class BatchRow:
    """A block on its way through stream batch, before its next step.

    Args:
        block: its number; None for a row that no block has reached yet, which is run all the same.
        latents: [frames, channels, h/8, w/8], at the noise of that step.
        noise: all draws of the block, [draws, frames, channels, h/8, w/8]; None where there is no block.
        position: of its first frame.
        prompt: under which it began.
        beside: of a row without a block, the block that enters with its next step where one does in each.

    """

    block: int | None
    latents: Tensor
    noise: Tensor | None
    position: int
    prompt: PromptKV
    beside: int = 0


class BegunBlock(NamedTuple):
    """A plain block of which some steps have run: a failure does not undo what they have written.

    `latents` are those of step `step`, which is next, and `lane` is how far the window is before it.
    """

    input: BlockInput
    prompt: PromptKV
    step: int
    latents: Tensor
    lane: Lane


@dataclass
class VideoStream:
    """The state of one stream, between two passes whenever the generator is not at work on it.

    `entered` counts blocks that have been begun, `blocks` those that have come out; `opening` is the block with
    which the stream has opened, or is to open, last. `progress` says how far each of the `lanes` is: one for each
    step, of which a plain loop uses the first. `rows` are the blocks between two steps of stream batch, from the
    second step on; None where there is none. `position` is the next block's.
    `renewing` is whether the sink has been renewed since the last block began. `rebuilt_before` are the blocks in
    front of which the windows were rebuilt from `inputs`. `flushed` have come out of a flush that is not done.
    A stream that is suspended has neither lanes nor rows: `set_aside` blocks were between two steps.
    """

    config: VideoStreamConfig
    window: RollingWindow
    noise: Noise
    noise_prefetcher: NoisePrefetcher
    lanes: tuple[StreamKV, ...]
    progress: tuple[Lane, ...]
    recent: RecentLatents
    inputs: KeptInputs
    decoder: ConvCache | None
    loop: Loop
    rows: tuple[BatchRow | None, ...] = ()
    prompt: Prompt | None = None
    prompt_kv: PromptKV | None = None
    position: int = 0
    opening: int = 0
    entered: int = 0
    blocks: int = 0
    decoded_blocks: int = 0
    renewing: bool = False
    rebuilt_before: list[int] = field(default_factory=list)
    begun: BegunBlock | None = None
    flushed: list[Block] = field(default_factory=list)
    set_aside: int = 0
    closed: bool = False

    @property
    def steps(self) -> int:
        """Denoising steps of a block."""
        return len(self.config.steps)

    @property
    def block_frames(self) -> int:
        """Latent frames of the next block to begin."""
        return self.frames_of(self.entered)

    @property
    def is_opening(self) -> bool:
        """Whether the next block to begin opens the stream."""
        return self.entered == self.opening

    @property
    def next_frame(self) -> int:
        """Pixel frame at which the next block to begin starts."""
        return pixel_frames(self.config.blocks.latent_frames(self.entered))

    @property
    def held_prompts(self) -> list[PromptKV]:
        """One for each that the stream gives back: the prompt in force, and those of its rows."""
        rows = [row.prompt for row in self.rows if row is not None]
        return rows if self.prompt_kv is None else [self.prompt_kv, *rows]

    @property
    def on_their_way(self) -> int:
        """Blocks between two steps."""
        return self.set_aside + sum(row is not None and row.block is not None for row in self.rows)

    @property
    def is_empty(self) -> bool:
        """Whether no block is on its way."""
        return self.on_their_way == 0

    def frames_of(self, block: int) -> int:
        """Latent frames of a block since the stream opened."""
        return self.config.blocks.frames_of(block, self.opening)

    def require_open(self) -> None:
        """Raise StreamError if the stream has been closed."""
        if self.closed:
            raise StreamError(f"the stream was closed after block {self.blocks - 1}; open another one")

    @property
    def is_suspended(self) -> bool:
        """Whether it has no windows, and waits to be resumed."""
        return not self.closed and not self.lanes

    def require_windows(self) -> None:
        """Raise StreamError if the stream has been closed, or is suspended."""
        self.require_open()
        if self.is_suspended:
            raise StreamError(f"the stream is suspended before block {self.entered}; resume it first")

    def require_between_blocks(self) -> None:
        """Raise StreamError if the stream has been closed, or a plain block of it has begun and failed."""
        self.require_open()
        if self.begun is not None:
            raise StreamError(f"block {self.entered} has begun; make it first")

    def require_at_rest(self) -> None:
        """Raise StreamError unless all blocks that have begun have come out, and are decoded if they are here."""
        self.require_between_blocks()
        if not self.is_empty:
            raise StreamError("blocks are on their way in a stream batch; flush them")
        self.require_decoded()

    def require_decoded(self) -> None:
        """Raise StreamError if there is a decoder, and a block that it has not decoded."""
        if self.decoder is not None and self.decoded_blocks != self.blocks:
            raise StreamError(f"{self.blocks} blocks are made but {self.decoded_blocks} decoded; decode first")

    def require_next(self, block: BlockInput) -> None:
        """Raise StreamError unless `block` can be the next to begin."""
        self.require_windows()
        self.require_prompt_kv()
        if self.flushed:
            raise StreamError("a flush has failed; repeat it before the next block")
        frames = block.latents.shape[0]
        if (block.number, frames) != (self.entered, self.block_frames):
            raise StreamError(
                f"the input is block {block.number}, of {frames} latent frames; next is block {self.entered}, "
                f"of {self.block_frames}"
            )

    def finish(self, latents: Tensor, ready: torch.cuda.Event | None) -> Block:
        """Take over a block that has come out."""
        lead_in = self.config.lead_in if self.blocks == self.opening > 0 else 0
        block = Block(self.blocks, latents, ready, lead_in)
        self.recent.append(latents)
        self.blocks += 1
        return block

    def require_prompt_kv(self) -> PromptKV:
        """Keys and values of the prompt in force; StreamError if none has been set."""
        if self.prompt_kv is None:
            raise StreamError("the stream has no prompt; set one before its first block")
        return self.prompt_kv

    def suspend(self, on_their_way: int) -> None:
        """Its windows have been given back, and so many blocks with them that were between two steps."""
        self.set_aside = on_their_way
        self.lanes, self.progress, self.rows = (), (), ()
        self.prompt_kv = self.decoder = None

    def resume(self, windows: VideoStream, decoder: ConvCache | None) -> None:
        """Take over the windows of another stream, in which its inputs have been played."""
        self.lanes, self.progress, self.rows = windows.lanes, windows.progress, windows.rows
        self.prompt_kv, self.decoder = windows.prompt_kv, decoder
        self.noise_prefetcher = windows.noise_prefetcher
        self.set_aside = 0
        if self.entered > self.opening and self.rebuilt_before[-1:] != [self.blocks]:
            self.rebuilt_before.append(self.blocks)

    def close(self) -> None:
        """Let go of all tensors."""
        self.closed = True
        del self.lanes, self.noise_prefetcher, self.inputs
        self.recent.clear()
        self.rows = ()
        self.flushed.clear()
        self.prompt = self.prompt_kv = self.decoder = self.begun = None

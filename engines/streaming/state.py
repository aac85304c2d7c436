"""What every kind of stream owns, what it has made and what changed it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from engines.config.geometry import pixel_frames
from engines.config.stream import StreamConfig
from engines.errors import StreamError
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache


class Block(NamedTuple):
    """One generated block: its number in the stream, and clean latents [frames, channels, h/8, w/8].

    The stream refers to the same latents: nobody writes into them. `ready` is when a GPU has made them.
    """

    number: int
    latents: Tensor
    ready: torch.cuda.Event | None = None


class LogEntry(NamedTuple):
    """What changed a stream from outside, and before which block: with the seed, enough to replay it."""

    block: int
    event: Literal["prompt", "restore"]
    text: str


@dataclass(frozen=True)
class SinkPass:
    """A pass that wrote the frame sink: made again, it writes the same keys and values.

    `latents` [blocks * frames, channels, h/8, w/8] went in at `timestep` under `prompt`, from `first_block` on.
    """

    first_block: int
    latents: Tensor
    timestep: float
    prompt: Prompt


@dataclass(kw_only=True)
class StreamState:
    """What every kind of stream owns.

    `blocks` counts what has been generated. `recent` holds the last blocks' latents: what a recache and a new
    decoder need.
    """

    config: StreamConfig
    recent: deque[Tensor]
    decoder: ConvCache | None
    blocks: int = 0
    decoded_blocks: int = 0
    log: list[LogEntry] = field(default_factory=list)
    closed: bool = False

    @property
    def next_frame(self) -> int:
        """Pixel frame at which the next block begins."""
        return pixel_frames(self.blocks * self.config.block_frames)

    def require_open(self) -> None:
        """Raise StreamError if the stream has been closed."""
        if self.closed:
            raise StreamError(f"the stream was closed after block {self.blocks - 1}; open another one")

    def last_blocks(self, count: int) -> Tensor:
        """Latents of the last `count` blocks, joined along the frames."""
        return torch.cat(list(self.recent)[len(self.recent) - count :])

    def require_decoded(self) -> None:
        """Raise StreamError if the decoder lags behind."""
        if self.decoder is not None and self.decoded_blocks != self.blocks:
            raise StreamError(
                f"{self.blocks} blocks are generated but {self.decoded_blocks} decoded; decode first"
            )

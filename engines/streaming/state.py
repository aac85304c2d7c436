"""What streams are made of besides their keys and values: blocks, the log, recent latents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engines.text.prompt import Prompt


class Block(NamedTuple):
    """One generated block: its number in the stream, and clean latents [frames, channels, h/8, w/8].

    The stream refers to the same latents: nobody writes into them. `ready` is when a GPU has made them. A block
    that opens its stream anew is decoded as if nothing had been before it, and the first `lead_in` of its pictures
    are not shown; it is 0 for all others.
    """

    number: int
    latents: Tensor
    ready: torch.cuda.Event | None = None
    lead_in: int = 0


@dataclass(frozen=True)
class SinkPass:
    """A pass that wrote the frame sink: made again, it writes the same keys and values.

    `latents` [frames, channels, h/8, w/8] went in at `timestep` under `prompt`, from `first_frame` on, into the
    window of `lane`.
    """

    first_frame: int
    latents: Tensor
    timestep: float
    prompt: Prompt
    lane: int = 0


class RecentLatents:
    """The latents of a stream's last blocks: of at least `frames` latent frames, once there are so many."""

    def __init__(self, frames: int, blocks: Iterable[Tensor] = ()) -> None:
        self._frames = frames
        self._blocks = deque(blocks)

    def __iter__(self) -> Iterator[Tensor]:
        """Blocks, from old to new."""
        return iter(self._blocks)

    def __len__(self) -> int:
        """How many blocks."""
        return len(self._blocks)

    @property
    def frames(self) -> int:
        """Latent frames held."""
        return sum(block.shape[0] for block in self._blocks)

    def append(self, latents: Tensor) -> None:
        """One more block; the oldest ones go where they are not needed any more."""
        self._blocks.append(latents)
        while self.frames - self._blocks[0].shape[0] >= self._frames:
            self._blocks.popleft()

    def last_block(self) -> Tensor:
        """That which was appended last."""
        return self._blocks[-1]

    def last(self, frames: int) -> Tensor:
        """The last `frames` latent frames, joined."""
        return torch.cat(self.last_blocks(frames))[-frames:]

    def last_blocks(self, frames: int) -> list[Tensor]:
        """As few whole blocks as have the last `frames` latent frames, or all there are."""
        taken: list[Tensor] = []
        for block in reversed(self._blocks):
            if sum(x.shape[0] for x in taken) >= frames:
                break
            taken.insert(0, block)
        return taken

    def copy(self) -> RecentLatents:
        """The same blocks, to go on by themselves."""
        return RecentLatents(self._frames, self._blocks)

    def clear(self) -> None:
        """Let go of all."""
        self._blocks.clear()

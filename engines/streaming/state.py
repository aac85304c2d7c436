"""What a stream has made and what changed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from engines.text.prompt import Prompt


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
class SinkCall:
    """A pass that wrote the frame sink: made again, it writes the same keys and values.

    `latents` [blocks * frames, channels, h/8, w/8] went in at `timestep` under `prompt`, from `first_block` on.
    """

    first_block: int
    latents: Tensor
    timestep: float
    prompt: Prompt

"""Noise drawn before it is asked for, so that no block waits for the host to draw it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from engines.sampling.noise import Noise


class NoisePrefetcher:
    """All draws of a stream's blocks, one block ahead.

    `executor` draws a block of `shape(block)`, [draws, ...], while the one before is denoised. Noise is a pure
    function of its block, so drawing too much, or again, changes nothing. For a GPU the result is in pinned
    memory.
    """

    def __init__(
        self,
        noise: Noise,
        shape: Callable[[int], tuple[int, ...]],
        dtype: torch.dtype,
        executor: Executor,
        *,
        pinned: bool,
    ) -> None:
        self._noise = noise
        self._shape = shape
        self._dtype = dtype
        self._executor = executor
        self._pinned = pinned
        self._ahead: dict[int, Future[Tensor]] = {}

    def prefetch(self, block: int) -> None:
        """Begin to draw the noise of `block`, and forget that of all others."""
        self._ahead = {block: self._ahead.get(block) or self._executor.submit(self.draw, block)}

    def get(self, block: int) -> Tensor:
        """Noise of `block` on the CPU, [draws, ...]; the next block's begins to be drawn.

        Raises what drawing raised, and draws once more when it is asked again.
        """
        self.prefetch(block)
        drawing = self._ahead[block]
        if drawing.exception() is not None:
            self._ahead = {}
        drawn = drawing.result()
        self.prefetch(block + 1)
        return drawn

    def draw(self, block: int) -> Tensor:
        """Noise of `block`, as `get` gives it, drawn here and now."""
        draws, *shape = self._shape(block)
        drawn = torch.stack([self._noise.draw(block, draw, tuple(shape)) for draw in range(draws)]).to(self._dtype)
        return drawn.pin_memory() if self._pinned else drawn

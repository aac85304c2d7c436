"""What a causal network that runs over a stream piece by piece remembers between two pieces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ConvCache:
    """The past of one stream in one network: an immutable value, replaced as a whole once per call.

    `frames_seen` counts the input frames seen so far. `frames[slot]` holds the last input frames of the layer with
    that slot number, or None where the layer has none to remember yet. The tensors belong to the cache:
    nobody writes into them, so an old cache stays valid when a call that started from it fails.
    """

    frames_seen: int
    frames: tuple[Tensor | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(t.nbytes for t in self.frames if t is not None)


class ConvCacheUpdate:
    """One call's view of a cache: reads the old past, collects the new one."""

    def __init__(self, old: ConvCache, frames: int) -> None:
        self.first = old.frames_seen == 0
        self._old = old
        self._frames = frames
        self._new: list[Tensor | None] = list(old.frames)

    def past(self, slot: int) -> Tensor | None:
        """What layer `slot` kept from earlier calls."""
        return self._old.frames[slot]

    def put_copy(self, slot: int, tensor: Tensor) -> None:
        """Remember `tensor` for layer `slot`; it is copied, so that it does not hold on to its base."""
        self._new[slot] = tensor.clone()

    def put(self, slot: int, tensor: Tensor) -> None:
        """Remember `tensor` for layer `slot` as it is: memory of its own, which this call fills.

        Until the call returns there are two sets of tensors, the old past and the new one, and no copy is made.
        """
        self._new[slot] = tensor

    def finish(self) -> ConvCache:
        """The cache after this call."""
        return ConvCache(self._old.frames_seen + self._frames, tuple(self._new))

"""What a causal network that runs over a stream piece by piece remembers between two pieces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class History:
    """The past of one stream in one network: an immutable value, replaced as a whole once per call.

    `consumed` counts the input frames seen so far. `past[slot]` holds the last input frames of the layer with
    that slot number, or None where the layer has none to remember yet. The tensors belong to the history:
    nobody writes into them, so an old history stays valid when a call that started from it fails.
    """

    consumed: int
    past: tuple[Tensor | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(t.nbytes for t in self.past if t is not None)


class HistoryStep:
    """One call's view of a history: reads the old past, collects the new one."""

    def __init__(self, old: History, frames: int) -> None:
        self.first = old.consumed == 0
        self._old = old
        self._frames = frames
        self._new: list[Tensor | None] = list(old.past)

    def past(self, slot: int) -> Tensor | None:
        """What layer `slot` kept from earlier calls."""
        return self._old.past[slot]

    def keep(self, slot: int, tensor: Tensor) -> None:
        """Remember `tensor` for layer `slot`; it is copied, so that it does not hold on to its base."""
        self._new[slot] = tensor.clone()

    def place(self, slot: int, tensor: Tensor) -> None:
        """Remember `tensor` for layer `slot` as it is: memory of its own, which this call fills.

        Until the call returns there are two sets of tensors, the old past and the new one, and no copy is made.
        """
        self._new[slot] = tensor

    def finish(self) -> History:
        """The history after this call."""
        return History(self._old.consumed + self._frames, tuple(self._new))

"""A light snapshot that is kept up to date in another process, by what is new in it after each block."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engines.device.host_copy import HostCopier, HostTensor, PendingCopy
from engines.errors import SnapshotError
from engines.streaming.snapshot import pack_light
from engines.streaming.snapshot_format import Parts


class SnapshotDelta(NamedTuple):
    """What turns one light snapshot into the next: new tensors by key, and what the snapshot then consists of."""

    facts: dict[str, Any]
    keys: dict[str, int]
    new: dict[int, HostTensor]


class PendingDelta(NamedTuple):
    """An update whose new tensors, by the keys `new`, are on their way to the host."""

    facts: dict[str, Any]
    keys: dict[str, int]
    new: tuple[int, ...]
    copy: PendingCopy

    def update(self) -> SnapshotDelta:
        """What is to be sent. On CUDA this waits for the copies, and for nothing that was begun after them."""
        new = {key: HostTensor.of(tensor) for key, tensor in zip(self.new, self.copy.result(), strict=True)}
        return SnapshotDelta(self.facts, self.keys, new)


class ReplicaLog:
    """Says what is new in a stream for one mirror of it; at first that is everything.

    `light_parts` are those of the stream's light snapshot.
    """

    def __init__(self, light_parts: Callable[[], Parts], copier: HostCopier) -> None:
        self._light_parts = light_parts
        self._copier = copier
        self._numbers = count()
        # The tensors are held, so that no other can come to have the identity of one that is gone.
        self._sent: dict[int, tuple[int, Tensor]] = {}

    def changes(self, ready: torch.cuda.Event | None = None) -> PendingDelta:
        """What is new in the stream since the last call; the stream must stand between two blocks.

        On CUDA it begins to be copied at `ready`, the last block's, or at the end of the caller's queue.
        """
        tensors, facts = self._light_parts()
        known = self._sent
        self._sent = {
            id(tensor): known.get(id(tensor)) or (next(self._numbers), tensor) for tensor in tensors.values()
        }
        keys = {name: self._sent[id(tensor)][0] for name, tensor in tensors.items()}
        new = {key: tensor for identity, (key, tensor) in self._sent.items() if identity not in known}
        return PendingDelta(facts, keys, tuple(new), self._copier.begin(list(new.values()), ready))


class StandbySnapshot:
    """What the updates of one source add up to."""

    def __init__(self) -> None:
        self._tensors: dict[int, HostTensor] = {}
        self._last: SnapshotDelta | None = None

    def apply(self, update: SnapshotDelta) -> None:
        """Take an update over. Raises SnapshotError, and stays as it was, if one before it is missing."""
        known = self._tensors | update.new
        if missing := set(update.keys.values()) - known.keys():
            raise SnapshotError(f"the mirror lacks {len(missing)} tensors: it has missed an update")
        self._tensors = {key: known[key] for key in update.keys.values()}
        self._last = SnapshotDelta(update.facts, update.keys, {})

    def snapshot(self) -> bytes:
        """The light snapshot that the stream would give. Raises SnapshotError before the first update."""
        if self._last is None:
            raise SnapshotError("the mirror has had no update yet")
        tensors = {name: self._tensors[key].tensor() for name, key in self._last.keys.items()}
        return pack_light(tensors, self._last.facts)

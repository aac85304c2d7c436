"""A light snapshot that is kept up to date in another process, by what is new in it after each block."""

from __future__ import annotations

from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.errors import SnapshotError
from engines.generator import Generator
from engines.snapshot import light_parts, pack_light
from engines.stream import Stream


class Plain(NamedTuple):
    """A tensor as it travels: its bytes, shape and dtype. Numpy has no bfloat16."""

    data: bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Plain:
        """A copy of `tensor` on the host."""
        here = tensor.detach().to("cpu").contiguous()
        return cls(here.flatten().view(torch.uint8).numpy().tobytes(), tuple(here.shape), here.dtype)

    def tensor(self) -> Tensor:
        """On the CPU, in memory of its own."""
        flat = torch.from_numpy(np.frombuffer(bytearray(self.data), np.uint8))
        return flat.view(self.dtype).reshape(self.shape)


class Update(NamedTuple):
    """What turns one light snapshot into the next: new tensors by key, and what the snapshot then consists of."""

    facts: dict[str, Any]
    keys: dict[str, int]
    new: dict[int, Plain]


class MirrorSource:
    """Makes the updates for one mirror of `stream`; the first holds everything."""

    def __init__(self, generator: Generator, stream: Stream) -> None:
        self._generator = generator
        self._stream = stream
        self._numbers = count()
        # The tensors are held, so that no other can come to have the identity of one that is gone.
        self._sent: dict[int, tuple[int, Tensor]] = {}

    def update(self) -> Update:
        """What is new in the stream since the last call. On CUDA it waits for the last block."""
        tensors, facts = light_parts(self._generator, self._stream)
        new: dict[int, Plain] = {}
        keys: dict[str, int] = {}
        sent = {}
        for name, tensor in tensors.items():
            if id(tensor) in self._sent:
                key = self._sent[id(tensor)][0]
            else:
                key = next(self._numbers)
                new[key] = Plain.of(tensor)
            sent[id(tensor)] = self._sent.setdefault(id(tensor), (key, tensor))
            keys[name] = key
        self._sent = sent
        return Update(facts, keys, new)


class Mirror:
    """What the updates of one source add up to."""

    def __init__(self) -> None:
        self._tensors: dict[int, Plain] = {}
        self._last: Update | None = None

    def apply(self, update: Update) -> None:
        """Take an update over. Raises SnapshotError, and stays as it was, if one before it is missing."""
        known = self._tensors | update.new
        if missing := set(update.keys.values()) - known.keys():
            raise SnapshotError(f"the mirror lacks {len(missing)} tensors: it has missed an update")
        self._tensors = {key: known[key] for key in update.keys.values()}
        self._last = Update(update.facts, update.keys, {})

    def snapshot(self) -> bytes:
        """The light snapshot that the stream would give. Raises SnapshotError before the first update."""
        if self._last is None:
            raise SnapshotError("the mirror has had no update yet")
        tensors = {name: self._tensors[key].tensor() for name, key in self._last.keys.items()}
        return pack_light(tensors, self._last.facts)

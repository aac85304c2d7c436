"""The KV pool: planes allocated once for all streams of a device, and the runs of tokens that streams hold of
them.

    plane   [layers, tokens, ...]      keys, values; scales of those in INT8 [layers, heads, tokens]
    run     tokens start .. start+n-1  of every plane, held from a stream's opening to its end

Runs are taken first fit. Where there are tokens enough but no gap is wide enough, runs are moved together: whoever
addresses a run reads its start anew for every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.validation import require
from engines.errors import PoolFull


class Plane(NamedTuple):
    """A tensor with a dimension `token_dim` for the pool's tokens."""

    tensor: Tensor
    token_dim: int = 1

    def of(self, start: int, tokens: int) -> Tensor:
        """A view of some tokens."""
        return self.tensor.narrow(self.token_dim, start, tokens)


class KVRun:
    """Tokens of a pool that one stream or prompt holds. `start` changes only when the pool moves runs together."""

    def __init__(self, start: int, tokens: int) -> None:
        self.start = start
        self.tokens = tokens


class KVPool:
    """Runs of `planes`, which have equally many tokens; `name` says in errors what they are runs of."""

    def __init__(self, name: str, planes: dict[str, Plane]) -> None:
        self._name = name
        self.planes = planes
        self.tokens = next(plane.tensor.shape[plane.token_dim] for plane in planes.values())
        self._runs: list[KVRun] = []

    @property
    def free(self) -> int:
        """Tokens that no run holds."""
        return self.tokens - sum(run.tokens for run in self._runs)

    @property
    def token_bytes(self) -> int:
        """Of one token, in all planes and layers."""
        return sum(plane.tensor.nbytes for plane in self.planes.values()) // max(self.tokens, 1)

    def take(self, tokens: int) -> KVRun:
        """A run with nothing of use in it; other runs may move.

        Raises PoolFull if too few tokens are left, ConfigError if so many will never be. Where a device has no
        memory for moving runs either, nothing has moved.
        """
        self.require_possible(tokens)
        if tokens > self.free:
            raise PoolFull(
                f"{self._name} needs {tokens:,} tokens, {tokens * self.token_bytes:,} bytes; of {self.tokens:,} "
                f"there are {self.free:,} left"
            )
        start = self._gap(tokens)
        if start is None:
            self._move_together()
            start = self._gap(tokens)
        assert start is not None
        run = KVRun(start, tokens)
        self._runs.append(run)
        self._runs.sort(key=lambda held: held.start)
        return run

    def require_possible(self, tokens: int) -> None:
        """Raise ConfigError if not even all of the pool would do."""
        require(
            tokens <= self.tokens,
            f"{self._name} needs {tokens:,} tokens, and there is memory for {self.tokens:,} in all: ask for a "
            "smaller picture or window, or serve with more --slots or with its size among --sizes",
        )

    def give_back(self, run: KVRun) -> None:
        """A run that nobody uses any more."""
        self._runs.remove(run)

    def state(self, run: KVRun, tokens: int) -> dict[str, Tensor]:
        """The first `tokens` tokens of a run in each plane, by its name: views."""
        return {name: plane.of(run.start, tokens) for name, plane in self.planes.items()}

    def copy(self, source: KVRun, target: KVRun) -> None:
        """Copy a run into another one as long."""
        copied = zip(
            self.state(target, source.tokens).values(), self.state(source, source.tokens).values(), strict=True
        )
        for there, here in copied:
            there.copy_(here)

    def _gap(self, tokens: int) -> int | None:
        """Where the first gap of so many tokens begins."""
        return next((start for start, end in self._gaps() if end - start >= tokens), None)

    def _gaps(self) -> Iterator[tuple[int, int]]:
        end = 0
        for run in self._runs:
            yield end, run.start
            end = run.start + run.tokens
        yield end, self.tokens

    def _move_together(self) -> None:
        """Leave one gap, at the end."""
        # All memory is taken first: half of a run moved would be a stream lost.
        most = max((run.tokens for run in self._runs), default=0)
        staging = [torch.empty_like(plane.of(0, most).select(0, 0)) for plane in self.planes.values()]
        end = 0
        for run in self._runs:
            if run.start != end:
                for plane, staged in zip(self.planes.values(), staging, strict=True):
                    _move(plane, run.start, end, run.tokens, staged)
                run.start = end
            end += run.tokens


def _move(plane: Plane, source: int, target: int, tokens: int, staging: Tensor) -> None:
    """Copy tokens towards the front: a layer at a time through `staging` where they overlap."""
    if source - target >= tokens:
        plane.of(target, tokens).copy_(plane.of(source, tokens))
        return
    dim = plane.token_dim - 1
    moved = staging.narrow(dim, 0, tokens)
    for layer in plane.tensor.unbind(0):
        moved.copy_(layer.narrow(dim, source, tokens))
        layer.narrow(dim, target, tokens).copy_(moved)

"""Modules that hold tensors of dtypes of their own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import override


class FixedDtypes(nn.Module):
    """A module whose buffers keep their dtypes wherever it is moved, and whatever its parameters are cast to."""

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypes:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = buffer if moved.device == buffer.device else buffer.to(moved.device)
        return self

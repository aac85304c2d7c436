"""Counts what makes the host wait for all work that a GPU has been given: tensors read back, or made of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

READING = frozenset({
    "item", "tolist", "cpu", "numpy", "nonzero", "is_nonzero", "equal", "masked_select", "unique",
    "__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__", "__contains__",
})  # fmt: skip
"""Functions of tensors whose result the host sees, or whose result's shape depends on values."""


MAKING = frozenset({"tensor", "as_tensor", "asarray"})
"""Functions that copy values from memory that is not pinned, where they are told a device."""


class Readbacks(TorchFunctionMode):
    """Within it, `names` counts the calls of such functions, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in READING or (name in MAKING and (kwargs or {}).get("device") is not None):
            self.names[name] += 1
        return function(*args, **(kwargs or {}))

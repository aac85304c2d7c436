"""Counting the kernels that a call launches, on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

ALLOCATIONS = ("aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided")


class Launches(TorchDispatchMode):
    """Notes in `names` every operator that computes, as one kernel each; views and allocations launch none.

    Operators that are made of others count as these. What a library launches besides its one kernel is unknown.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    @override
    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        with self:
            made = func.decompose(*args, **given)
        if made is not NotImplemented:
            return made
        made = func(*args, **given)
        name = str(func.overloadpacket)
        if name not in ALLOCATIONS and (func._schema.is_mutable or not _is_view(made, (args, given))):
            self.names.append(name)
        return made


def _is_view(made: Any, given: Any) -> bool:
    """Whether all tensors of `made` lie in the memory of those given."""
    return {_memory(x) for x in _tensors(made)} <= {_memory(x) for x in _tensors(given)}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def launches_of(call: Callable[[], object]) -> list[str]:
    """The kernels of a call, in their order."""
    with Launches() as launches:
        call()
    return launches.names

"""Networks filled from tensors by name, which must fit exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from engines.errors import WeightsError
from kernels.eight_bits import quantize_rows

NAMED_IN_ERRORS = 3


NetworkT = TypeVar("NetworkT", bound=nn.Module)


Adapt = Callable[[str, Tensor], Tensor]
"""Makes a parameter of its name and of the tensor in the file."""


def unchanged(_: str, tensor: Tensor) -> Tensor:
    """The tensor in the file."""
    return tensor


def fill(
    network: NetworkT,
    tensors: Mapping[str, Tensor],
    source: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    adapt: Adapt = unchanged,
) -> NetworkT:
    """Give `network`, built on `meta`, its parameters on `device` in `dtype`, for inference.

    Buffers keep the dtypes that they were built with. Raises WeightsError before anything is read unless names and
    shapes, and the dtypes of buffers, are exactly the network's; `source` is named in it.
    """
    state = network.state_dict()
    expected = {name: tensor.shape for name, tensor in state.items()}
    dtypes = {name: buffer.dtype for name, buffer in network.named_buffers() if name in state}
    require_fit(tensors, expected, f"{source} does not fit {type(network).__name__}", dtypes)
    copies = {
        name: torch.empty(shape, device=device, dtype=dtypes.get(name, dtype)).copy_(adapt(name, tensors[name]))
        for name, shape in expected.items()
    }
    network.load_state_dict(copies, assign=True)
    # Constants that no checkpoint holds have stayed where they were made.
    return network.to(device, dtype).eval().requires_grad_(False)


def fill_rounded(
    network: NetworkT, tensors: Mapping[str, Tensor], source: Path, device: torch.device | str, dtype: torch.dtype
) -> NetworkT:
    """As `fill`, of a network whose layers hold INT8 weights beside their scales, from a file that has neither.

    Each weight is rounded as it is read, so no more than one is in memory as it was.
    """
    state = network.state_dict()
    rounded = {name for name in state if f"{name}_scale" in state}
    made = {f"{name}_scale" for name in rounded}
    expected = {name: tensor.shape for name, tensor in state.items() if name not in made}
    require_fit(tensors, expected, f"{source} does not fit {type(network).__name__}")
    copies = {name: tensors[name].to(device, dtype, copy=True) for name in expected if name not in rounded}
    for name in rounded:
        weight, scale = quantize_rows(tensors[name].float())
        copies |= {name: weight.to(device), f"{name}_scale": scale.to(device)}
    network.load_state_dict(copies, assign=True)
    return network.to(device, dtype).eval().requires_grad_(False)


def require_fit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    complaint: str,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Raise WeightsError, `complaint` and what is wrong, unless `tensors` are those that are `expected`.

    They are of any floating dtype of 16 bits or more, but for those whose very dtype is in `dtypes`.
    """
    exact = dtypes or {}
    both = {name: tensors[name] for name in expected if name in tensors}
    findings = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} is {list(tensor.shape)}, not {list(expected[name])}"
            for name, tensor in both.items() if tensor.shape != expected[name]
        ],
        "not floating point": [
            f"{name} is {tensor.dtype}" for name, tensor in both.items()
            if name not in exact and not (tensor.is_floating_point() and tensor.dtype.itemsize > 1)
        ],
        "of another dtype": [
            f"{name} is {both[name].dtype}, not {dtype}" for name, dtype in exact.items()
            if name in both and both[name].dtype != dtype
        ],
    }  # fmt: skip
    wrong = [f"{len(names)} {kind} ({_some(names)})" for kind, names in findings.items() if names]
    if wrong:
        raise WeightsError(f"{complaint}: {'; '.join(wrong)}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join([*names[:NAMED_IN_ERRORS], *([f"and {more} more"] if more > 0 else [])])

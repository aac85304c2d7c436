"""Checkpoint files as mappings from names to tensors, each read from the mapped file when it is asked for.

Two formats, told apart by their first bytes: safetensors, and the zip archives that `torch.save` writes. The
bare pickles that it wrote before torch 1.6 (2020) cannot be mapped and are refused; no published model of ours
is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint
from typing_extensions import override

from engines.config.geometry import PATCH
from engines.errors import WeightsError

ZIP_START = b"PK\x03\x04"
SAFETENSORS_LENGTH_BYTES = 8
"""The length of the header, a JSON object, which follows it."""

FSDP_FRAGMENT = "_fsdp_wrapped_module."


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one file. They are views of the file: copy what must not change when the file does.

    `stored` maps each name to the one that the tensor has in the file.
    """

    path: Path
    stored: Mapping[str, str]
    read: Callable[[str], Tensor]

    @classmethod
    def open(cls, path: Path, entries: Sequence[str] = ()) -> Self:
        """Map the file `path`; whatever is wrong with it raises WeightsError, which names it.

        A pickle may be a dictionary of state dicts: the first of `entries` that is in it counts, and nothing
        else in it is read. Code in a pickle is never executed.
        """
        start = _start_of(path)
        if start.startswith(ZIP_START):
            tensors = _tensors_of(_unpickle(path), path, entries)
            return cls(path, {name: name for name in tensors}, tensors.__getitem__)
        if start[SAFETENSORS_LENGTH_BYTES:] == b"{":
            file = _open_safetensors(path)
            return cls(path, {name: name for name in file.keys()}, file.get_tensor)  # noqa: SIM118
        raise WeightsError(
            f"{path} is neither a safetensors file nor a zip archive of torch.save; "
            "if torch before 1.6 wrote it, load it there and save it again"
        )

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """The same tensors by the names that `rename` gives them; WeightsError if two get the same."""
        stored: dict[str, str] = {}
        for name, place in self.stored.items():
            new = rename(name)
            if new in stored:
                raise WeightsError(f"{self.path} holds {new} twice: as {stored[new]} and as {place}")
            stored[new] = place
        return type(self)(self.path, stored, self.read)

    def adapted(self, adapt: Callable[[str, Tensor], Tensor]) -> Self:
        """The same names with what `adapt` makes of each tensor, by its name in the file, once it is read."""
        return type(self)(self.path, self.stored, lambda name: adapt(name, self.read(name)))

    @override
    def __getitem__(self, name: str) -> Tensor:
        return self.read(self.stored[name])

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    @override
    def __len__(self) -> int:
        return len(self.stored)


def patch_as_convolution(name: str, tensor: Tensor) -> Tensor:
    """A patch embedding [dim, channels * 2 * 2] that was saved as a matrix (rCM), as Wan's convolution."""
    if name.endswith("patch_embedding.weight") and tensor.dim() == 2:
        return tensor.unflatten(1, (-1, 1, PATCH, PATCH))
    return tensor


def without_wrappers(name: str) -> str:
    """`name` without what FSDP and the published training code put around the network."""
    return name.replace(FSDP_FRAGMENT, "").removeprefix("model.")


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SAFETENSORS_LENGTH_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error


def _open_safetensors(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged or cut short: {error}") from error


def _unpickle(path: Path) -> object:
    """What the archive holds; its tensors are views of the mapped file."""
    try:
        code = get_unsafe_globals_in_checkpoint(path)
        pickled = None if code else torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # It depends on the damaged byte what torch raises.
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise WeightsError(
            f"{path} is cut short, damaged or no plain checkpoint ({reason}); no code in it was executed"
        ) from error
    if code:
        raise WeightsError(
            f"{path} asks for code besides tensors ({', '.join(sorted(code))}); no code in it was executed"
        )
    return pickled


def _tensors_of(pickled: object, path: Path, entries: Sequence[str]) -> Mapping[str, Tensor]:
    """The state dict in what was unpickled."""
    if not isinstance(pickled, Mapping):
        raise WeightsError(f"{path} holds a {type(pickled).__name__}, not a dictionary of tensors")
    state = next((pickled[entry] for entry in entries if isinstance(pickled.get(entry), Mapping)), pickled)
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        sought = f", and none of {', '.join(entries)}" if state is pickled and entries else ""
        raise WeightsError(f"{path} holds what is not a tensor: {', '.join(strange[:5])}{sought}")
    return state

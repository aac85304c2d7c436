"""How a kernel is cut up on each chip: tiles, the chips known, and what compiling ahead of time needs to know.

Only a launch knows its device, so tiles are kept in small tables by architecture: 80 is A100, 89 RTX 4090 and L4,
90 H100 and H200, 100 B200, 120 RTX 5090. Under Triton's interpreter kernels run on the CPU with the tile at
`INTERPRETER`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

NOT_MEASURED = "not measured"

INTERPRETER = 0
"""The architecture that stands for Triton's interpreter."""

ARCHITECTURES = (80, 89, 90, 100, 120)

ALIKE = {86: 89, 103: 100, 121: 120}
"""Chips with the shared memory and the tensor-core instructions of another."""

FP16_SUMS = (80, 89, 120)
"""Where products may be summed in fp16: some cards of these chips, GeForce ones, halve their rate for fp32 sums.
On other chips none does, and fp16 would lose precision for nothing.
"""

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""The most shared memory that a block may have (CUDA C++ Programming Guide, technical specifications)."""


@dataclass(frozen=True)
class Tile:
    """One way to cut up a kernel's work.

    `m` rows by `n` columns of what a program covers, in steps of `k` where it sums; all powers of two. `source`
    says who measured it, and on what.
    """

    m: int
    n: int
    warps: int
    stages: int = 1
    k: int = 1
    source: str = NOT_MEASURED

    def __post_init__(self) -> None:
        for name, size in (("m", self.m), ("n", self.n), ("k", self.k), ("warps", self.warps)):
            if size < 1 or size & (size - 1):
                raise ValueError(f"a tile's {name} is a power of two; got {size}")
        if self.stages < 1:
            raise ValueError(f"a tile has at least one stage; got {self.stages}")

    @property
    def options(self) -> dict[str, int]:
        """What a launch says to Triton's compiler, whose default for fused multiply-adds changes in 3.10."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


Tiles: TypeAlias = Mapping[int, Tile]
"""Tiles of one kernel in one dtype by architecture, `INTERPRETER` among them."""


def interpreted() -> bool:
    """Kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def architecture(device: torch.device) -> int:
    """Of a CUDA device the number in sm_90; `INTERPRETER` where Triton interprets.

    Raises:
        ValueError: a kernel cannot run on `device`.

    """
    if device.type != ("cpu" if interpreted() else "cuda"):
        raise ValueError(
            f"Triton kernels run on CUDA, and with TRITON_INTERPRET=1 on the CPU instead; got tensors on {device}"
        )
    if interpreted():
        return INTERPRETER
    if device.index not in (None, torch.cuda.current_device()):
        raise ValueError(
            f"Triton launches on the current device, cuda:{torch.cuda.current_device()}; got tensors on {device}: "
            "call torch.cuda.set_device in this thread"
        )
    major, minor = torch.cuda.get_device_capability(device)
    return ALIKE.get(10 * major + minor, 10 * major + minor)


def tile_for(tiles: Tiles, architecture: int, kernel: str, remedy: str = "") -> Tile:
    """The tile of `kernel` on an architecture.

    Raises:
        ValueError: `tiles` has none for it; it says `remedy`, too.

    """
    if architecture not in tiles:
        known = ", ".join(f"sm_{known}" for known in tiles if known != INTERPRETER)
        ending = f". {remedy}" if remedy else ""
        raise ValueError(f"{kernel} has no tile for sm_{architecture}; known are {known}{ending}")
    return tiles[architecture]


@dataclass(frozen=True)
class AotCase:
    """A kernel as one architecture compiles it, with everything that a launch would otherwise tell the compiler.

    `kernel` is the function under `@triton.jit`. `arguments` are the types of what it is called with, in its
    order, as Triton writes them ("*bf16", "i32", "fp32", "i64", "tensordesc<bf16[128, 128]>"), and `constants` the
    values of its constexpr parameters. `aligned` names the arguments that are always divisible by 16, as a launch
    would see of pointers and sizes by itself. `needs` lists the instructions that the machine code must
    contain, each as one or several of which one will do ("UTCIMMA|IMMA").
    """

    name: str
    kernel: Any
    architecture: int
    tile: Tile
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: Sequence[str] = ()
    needs: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"{self.name}: no sm_{self.architecture}; known are {ARCHITECTURES}")
        unknown = set(self.aligned) - set(self.arguments)
        if unknown:
            raise ValueError(f"{self.name}: aligned names {sorted(unknown)}, which are no arguments")


AotCases: TypeAlias = Callable[[], Sequence[AotCase]]
"""What each op's file offers as `aot_cases`: every configuration in its tables, under names of its own."""

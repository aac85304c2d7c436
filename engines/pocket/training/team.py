"""Processes that train one network together: each on data of its own, all with the same weights.

On a machine that others use too, several processes of one thread each get further than one of several threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Team:
    """One process's place among the others; by itself it is a team of one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def sum_(self, tensor: Tensor) -> None:
        """Put the sum over all processes into `tensor`."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def leaders(self, values: Sequence[float]) -> list[float]:
        """What the leading process has for `values`, so that all decide alike."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.tolist()

    def mine(self, count: int) -> slice:
        """This process's part of `count` things."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


def run_together(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """`work(team, *arguments)` in so many processes on the CPU; one of them is this one if it is alone."""
    if processes == 1:
        work(Team(), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_member, (processes, Path(folder) / "rendezvous", work, *arguments), nprocs=processes)


def _member(rank: int, size: int, rendezvous: Path, work: Callable[..., None], *arguments: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    try:
        work(Team(rank, size), *arguments)
    finally:
        dist.destroy_process_group()

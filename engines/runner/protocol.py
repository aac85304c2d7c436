"""How passes are run: with PyTorch's own operators here, with kernels in `engines.runner.fused`.

The way of a block, and how many there are of each:

    Generator.generate            one per model: which streams go together, what is due before and after
    Rollout.denoise               one per generator: a block's steps, and where its keys and values go
    Passes.over(views) -> Pass    one `Passes` per generator. The pass is bound to these streams until the next
                                  call; `KernelPasses` keeps one for each number of streams and blocks and each
                                  size of picture, whose `PassBuffers` it fills with (lends) the streams' facts
    Pass.denoise                  once a step: from a recording where there is one for what is `Baked` into it
    CausalTransformer.denoise     the network: it calls a `Memory` (slabs, prompts) and `LayerOps` (all else)
    PassBuffers, or SlabMemory    the memory: kernels of `kernels`, or their references
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engines.cache.kv_pool import KVSlab
from engines.runner.batch import StreamView
from engines.sampling.flow_schedule import FlowSchedule
from engines.wan.transformer import Modulations


class Pass(Protocol):
    """What can be run over the same streams at the same place, any number of times."""

    def denoise(self, latents: Tensor, modulations: Modulations) -> Tensor:
        """Flow of the shape of `latents`; it may be overwritten by the next pass."""

    def remember(self, latents: Tensor, modulations: Modulations) -> None:
        """Keys and values only."""


class Passes(Protocol):
    """Runs the passes of one transformer, one after the other."""

    folds_prompts: bool
    """Whether a prompt's padding may be one key."""

    knows_slabs: bool
    """Whether something is made for a slab that is of use to the next stream in it."""

    int8_keys: bool
    """Whether slabs keep their keys in INT8."""

    def over(self, views: Sequence[StreamView]) -> Pass:
        """A pass over streams; of use until the next call."""

    def advance(
        self, schedules: Sequence[FlowSchedule], x: Tensor, flow: Tensor, noise: Tensor | None, step: int
    ) -> Tensor:
        """Latents [B, ...] from `step` of each stream's schedule to the next one; clean ones without `noise`."""

    def forget(self, slab: KVSlab) -> None:
        """Drop what was made for a slab that is given back."""

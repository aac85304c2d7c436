"""How passes are run: with PyTorch's own operators here, with kernels in `engines.runner.fused`.

The way of a block, and how many there are of each:

    Generator.generate            one per model: which streams go together, what is due before and after
    Rollout.denoise               one per generator: a block's steps, and where its keys and values go
    ModelRunner.prepare(inputs)   one per generator. The `BoundPass` is bound to these streams until the next call;
                                  `FusedRunner` keeps one for each number of streams and blocks and each size of
                                  picture, whose `BatchBuffers` it loads with the streams' facts
    BoundPass.denoise             once a step: from a recording where there is one for what is `Baked` into it
    CausalTransformer.denoise     the network: it calls an `AttentionContext` (slabs, prompts) and `LayerOps` (all
                                  else)
    BatchBuffers, EagerAttention  the context: kernels of `kernels`, or their references
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engines.cache.kv_pool import KVRun
from engines.runner.batch import PassInput
from engines.sampling.flow_schedule import FlowSchedule
from engines.wan.transformer import AdaLNModulation


class BoundPass(Protocol):
    """What can be run over the same streams at the same place, any number of times."""

    def denoise(self, latents: Tensor, modulations: AdaLNModulation) -> Tensor:
        """Flow of the shape of `latents`; it may be overwritten by the next pass."""

    def write_kv(self, latents: Tensor, modulations: AdaLNModulation) -> None:
        """Keys and values only."""


class ModelRunner(Protocol):
    """Runs the passes of one transformer, one after the other."""

    folds_prompts: bool
    """Whether a prompt's padding may be one key."""

    knows_slabs: bool
    """Whether something is made for a slab that is of use to the next stream in it."""

    int8_keys: bool
    """Whether slabs keep their keys in INT8."""

    def prepare(self, views: Sequence[PassInput]) -> BoundPass:
        """A pass over streams; of use until the next call."""

    def flow_step(
        self, schedules: Sequence[FlowSchedule], x: Tensor, flow: Tensor, noise: Tensor | None, step: int
    ) -> Tensor:
        """Latents [B, ...] from `step` of each stream's schedule to the next one; clean ones without `noise`."""

    def forget(self, slab: KVRun) -> None:
        """Drop what was made for a slab that is given back."""

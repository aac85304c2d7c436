"""How passes are run: with PyTorch's own operators here, with kernels in `engines.kernel_passes`.

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

import torch
from torch import Tensor

from engines.codec import Codec
from engines.device.cuda_graph import CudaRecorder
from engines.errors import ConfigError
from engines.kv_slab import KVSlab
from engines.memory import SlabMemory, StreamView
from engines.sampling.flow_schedule import FlowSchedule
from engines.wan.transformer import CausalTransformer, Modulations
from kernels.dispatch import EAGER, KernelBackends


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


class PlainPass:
    """A pass in PyTorch's own operators."""

    def __init__(self, transformer: CausalTransformer, memory: SlabMemory) -> None:
        self._transformer = transformer
        self._memory = memory

    def denoise(self, latents: Tensor, modulations: Modulations) -> Tensor:
        """As the transformer."""
        return self._transformer.denoise(latents, modulations, self._memory)

    def remember(self, latents: Tensor, modulations: Modulations) -> None:
        """As the transformer."""
        self._transformer.remember(latents, modulations, self._memory)


class PlainPasses:
    """Runs passes in PyTorch's own operators: what defines the results."""

    knows_slabs = False
    int8_keys = False

    def __init__(self, transformer: CausalTransformer) -> None:
        self._transformer = transformer
        # CUDA's attention takes no fp32 bias beside bf16 queries.
        self.folds_prompts = transformer.device.type != "cuda"

    def over(self, views: Sequence[StreamView]) -> PlainPass:
        """A pass over streams."""
        return PlainPass(self._transformer, SlabMemory(views))

    def advance(
        self, schedules: Sequence[FlowSchedule], x: Tensor, flow: Tensor, noise: Tensor | None, step: int
    ) -> Tensor:
        """Stream by stream."""
        rows = zip(schedules, x, flow, strict=True)
        clean = [schedule.clean(noisy, towards, step) for schedule, noisy, towards in rows]
        if noise is None:
            return torch.stack(clean)
        pairs = zip(schedules, clean, noise, strict=True)
        return torch.stack([schedule.renoise(latents, fresh, step + 1) for schedule, latents, fresh in pairs])

    def forget(self, slab: KVSlab) -> None:
        """Nothing is kept."""


def fuse(codec: Codec, backends: KernelBackends) -> None:
    """Change `codec`, for good, to run as `backends` says."""
    if backends.decoder == "triton":
        # As for passes: the kernels bring Triton.
        from kernels.vae.fused import FUSED

        codec.fuse(FUSED)


def can_be_replayed(backends: KernelBackends, device: torch.device) -> bool:
    """Whether passes in the kernels of `backends` can be replayed from graphs on `device`."""
    return device.type == "cuda" and backends.supports_cuda_graphs


def passes_for(transformer: CausalTransformer, backends: KernelBackends, *, graphs: bool) -> Passes:
    """Passes as `backends` say, replayed from CUDA graphs if asked for; ConfigError where graphs cannot be."""
    if graphs and transformer.device.type != "cuda":
        raise ConfigError(f"CUDA graphs need a CUDA device; the transformer is on {transformer.device}")
    if backends == EAGER:
        if graphs:
            raise ConfigError(
                f"CUDA graphs need kernels that find slabs by themselves; the kernels are {backends}"
            )
        return PlainPasses(transformer)
    # Kernels bring Triton, which not every machine has.
    from engines.kernel_passes import KernelPasses

    return KernelPasses(transformer, backends, CudaRecorder(transformer.device) if graphs else None)

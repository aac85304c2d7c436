"""Which of the ways to run passes a model gets."""

from __future__ import annotations

import torch

from engines.device.cuda_graph import CudaRecorder
from engines.errors import ConfigError
from engines.runner.eager import PlainPasses
from engines.runner.protocol import Passes
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import EAGER, KernelBackends


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
    from engines.runner.fused import KernelPasses

    return KernelPasses(transformer, backends, CudaRecorder(transformer.device) if graphs else None)

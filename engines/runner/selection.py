"""Which of the ways to run passes a model gets."""

from __future__ import annotations

import torch

from engines.cache.kv_cache import KVFormat
from engines.device.cuda_graph import CudaGraphCapture
from engines.errors import ConfigError
from engines.runner.eager import EagerRunner
from engines.runner.protocol import ModelRunner
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import EAGER, KernelBackends

WIDEST_TOKEN = 2048
"""Channels for which the kernels have tiles."""

DATACENTER_BLACKWELL = 10
"""Major compute capability of B200 and its like."""


def can_use_cuda_graphs(backends: KernelBackends, device: torch.device) -> bool:
    """Whether passes in the kernels of `backends` can be replayed from graphs on `device`."""
    return device.type == "cuda" and backends.supports_cuda_graphs


def kv_format_of(backends: KernelBackends) -> KVFormat:
    """How windows are kept for them."""
    return KVFormat(backends.keys == "int8", backends.values == "int8")


def _require_tiles(transformer: CausalTransformer) -> None:
    """Raise ConfigError for a transformer that is too wide for the kernels."""
    dim = transformer.config.dim
    if dim > WIDEST_TOKEN:
        raise ConfigError(
            f"the transformer's tokens have {dim} channels, and the kernels take at most {WIDEST_TOKEN}; "
            "say --kernels reference"
        )


def _require_int8_products(transformer: CausalTransformer) -> None:
    """Raise ConfigError if the transformer is in INT8, and its chip is made for FP8."""
    quantization, device = transformer.config.quantization, transformer.device
    if quantization is None or quantization.weights != "int8" or device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major == DATACENTER_BLACKWELL:
        raise ConfigError(
            f"sm_{major}{minor} multiplies INT8 at a small part of its rate of FP8, and the transformer is in "
            f"{quantization}; serve one that `longtake quantize --to fp8` made"
        )


def select_runner(transformer: CausalTransformer, backends: KernelBackends, *, graphs: bool) -> ModelRunner:
    """Passes as `backends` say, replayed from CUDA graphs if asked for.

    Raises ConfigError where graphs cannot be, and for a transformer that is too wide for kernels or is made in 8
    bits for another chip.
    """
    if graphs and transformer.device.type != "cuda":
        raise ConfigError(f"CUDA graphs need a CUDA device; the transformer is on {transformer.device}")
    _require_int8_products(transformer)
    if backends == EAGER:
        if graphs:
            raise ConfigError(
                f"CUDA graphs need kernels that read from the device what rows address; they are {backends}"
            )
        return EagerRunner(transformer)
    _require_tiles(transformer)
    # Kernels bring Triton, which not every machine has.
    from engines.runner.fused import FusedRunner

    return FusedRunner(transformer, backends, CudaGraphCapture(transformer.device) if graphs else None)

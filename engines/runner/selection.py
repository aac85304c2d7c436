"""Which of the ways to run passes a model gets."""

from __future__ import annotations

import torch

from engines.cache.kv_cache import KVFormat
from engines.config.networks import TransformerConfig
from engines.config.quantization import QuantizationConfig
from engines.device.cuda_graph import CudaGraphCapture
from engines.errors import ConfigError
from engines.runner.eager import EagerRunner
from engines.runner.protocol import ModelRunner
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import EAGER, KernelBackends
from kernels.linear_fp8 import LIBRARY_CHIP, LIBRARY_OUTPUT

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


def require_runnable(
    config: TransformerConfig, backends: KernelBackends, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise ConfigError if a transformer, which need not be loaded yet, cannot run as it is to.

    It may be too wide for the kernels of `backends`, or in 8 bits for which `device` is not made.
    """
    if backends != EAGER and config.dim > WIDEST_TOKEN:
        raise ConfigError(
            f"the transformer's tokens have {config.dim} channels, and the kernels take at most {WIDEST_TOKEN}; "
            "say --kernels reference"
        )
    if config.quantization is None or device.type != "cuda":
        return
    problem = format_problem(config.quantization, torch.cuda.get_device_capability(device), dtype)
    if problem is not None:
        raise ConfigError(f"the transformer is in {config.quantization}, and {problem}")


def format_problem(recipe: QuantizationConfig, capability: tuple[int, int], dtype: torch.dtype) -> str | None:
    """What is wrong with a transformer in `recipe`, and in `dtype` beside, on CUDA devices of such a capability.

    None if it runs there, and as fast as 8 bits should.
    """
    chip = f"sm_{capability[0]}{capability[1]}"
    if recipe.weights == "int8" and capability[0] == DATACENTER_BLACKWELL:
        return (
            f"{chip} multiplies INT8 at a small part of its rate of FP8; serve one that "
            "`longtake quantize --to fp8` made"
        )
    if recipe.weights == "fp8" and capability < LIBRARY_CHIP:
        return f"{chip} does not multiply FP8; serve one that `longtake quantize --to int8` made"
    if recipe.weights == "fp8" and dtype != LIBRARY_OUTPUT:
        return f"products of FP8 come in {LIBRARY_OUTPUT}, not in {dtype}; say --dtype bfloat16"
    return None


def select_runner(transformer: CausalTransformer, backends: KernelBackends, *, graphs: bool) -> ModelRunner:
    """Passes as `backends` say, replayed from CUDA graphs if asked for.

    Raises ConfigError where graphs cannot be, and as `require_runnable`.
    """
    if graphs and transformer.device.type != "cuda":
        raise ConfigError(f"CUDA graphs need a CUDA device; the transformer is on {transformer.device}")
    require_runnable(transformer.config, backends, transformer.device, transformer.dtype)
    if backends == EAGER:
        if graphs:
            raise ConfigError(
                f"CUDA graphs need kernels that read from the device what rows address; they are {backends}"
            )
        return EagerRunner(transformer)
    # Kernels bring Triton, which not every machine has.
    from engines.runner.fused import FusedRunner

    return FusedRunner(transformer, backends, CudaGraphCapture(transformer.device) if graphs else None)

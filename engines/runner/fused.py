"""Passes in fused kernels, which read from device memory where a stream's keys are; replayed from graphs.

A set of buffers serves all passes of one shape. Between two passes other streams are put into it, or the same ones
further on: what a pass reads stays in place, and a recorded pass is good for any stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from engines.cache.kv_pool import KVRun
from engines.device.cuda_graph import Capture, CudaGraphed
from engines.errors import ConfigError
from engines.runner.batch import Baked, BatchBuffers, PassInput
from engines.sampling.flow_schedule import FlowSchedule
from engines.wan.fused_ops import AttentionOps, layer_ops
from engines.wan.layer_ops import LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.dispatch import KernelBackends
from kernels.flow_step import flow_step, flow_step_reference


class FusedPass:
    """A pass in kernels. One block's is replayed from a graph where there are graphs: longer ones are rare."""

    def __init__(self, runner: FusedRunner, buffers: BatchBuffers, *, graphed: bool) -> None:
        self.buffers = buffers
        # No methods of this object, which would keep itself and its recordings in memory.
        self._denoise = partial(_denoise, runner.transformer, runner.layer_ops, buffers)
        self._write_kv = partial(_write_kv, runner.transformer, runner.layer_ops, buffers)
        self.denoising = CudaGraphed[Baked](self._denoise, runner.record) if runner.record and graphed else None
        self.writing_kv = CudaGraphed[Baked](self._write_kv, runner.record) if runner.record and graphed else None

    def denoise(self, latents: Tensor, modulations: AdaLNModulation) -> Tensor:
        """The flow; from a graph, only until the next pass."""
        if self.denoising is None:
            return self._denoise(latents, *modulations)
        flow = self.denoising(self.buffers.baked, latents, *modulations)
        assert flow is not None
        return flow

    def write_kv(self, latents: Tensor, modulations: AdaLNModulation) -> None:
        """Keys and values only."""
        if self.writing_kv is None:
            self._write_kv(latents, *modulations)
        else:
            self.writing_kv(self.buffers.baked, latents, *modulations)

    def forget(self, slab: KVRun) -> None:
        """Let go of `slab`, and drop what was recorded for its address: recordings for others stay."""
        self.buffers.let_go(slab)
        for graphed in (self.denoising, self.writing_kv):
            if graphed is not None:
                graphed.forget(lambda baked: baked.knows(slab.keys.data_ptr()))


class FusedRunner:
    """Runs passes in the kernels of `backends`; those of one block are recorded by `record` if there is one."""

    folds_prompts = True

    def __init__(self, transformer: CausalTransformer, backends: KernelBackends, record: Capture | None) -> None:
        if record is not None and not backends.supports_cuda_graphs:
            raise ConfigError(
                "graphs need qk_norm_rope and prompt_attention to be triton: others know only one slab; "
                f"{backends}"
            )
        self.transformer = transformer
        self.record = record
        self.layer_ops = layer_ops(backends)
        self._attention_ops = AttentionOps.of(backends, transformer.device)
        self.knows_slabs = record is not None
        self.int8_keys = backends.keys == "int8"
        self._flow_step = flow_step if backends.flow_step == "triton" else flow_step_reference
        self._passes: dict[Hashable, FusedPass] = {}

    def prepare(self, views: Sequence[PassInput]) -> FusedPass:
        """A pass over streams; of use until the next call."""
        blocks = len(views[0].placement.slots)
        key = len(views), blocks, views[0].picture
        if key in self._passes:
            self._passes[key].buffers.load(views)
        else:
            buffers = BatchBuffers(self._attention_ops, views)
            self._passes[key] = FusedPass(self, buffers, graphed=blocks == 1)
        return self._passes[key]

    def flow_step(
        self, schedules: Sequence[FlowSchedule], x: Tensor, flow: Tensor, noise: Tensor | None, step: int
    ) -> Tensor:
        """One kernel for all streams."""
        now = [schedule.sigmas[step] for schedule in schedules]
        then = [0.0 if noise is None else schedule.sigmas[step + 1] for schedule in schedules]
        levels = _filled(now, x.device), _filled(then, x.device)
        return self._flow_step(x, flow, x if noise is None else noise, *levels)

    def forget(self, slab: KVRun) -> None:
        """Keep neither the slab in memory nor recordings that know its address."""
        for made in self._passes.values():
            made.forget(slab)


def _denoise(
    transformer: CausalTransformer, ops: LayerOps, buffers: BatchBuffers, latents: Tensor, *modulations: Tensor
) -> Tensor:
    return transformer.denoise(latents, AdaLNModulation(*modulations), buffers, ops)


def _write_kv(
    transformer: CausalTransformer, ops: LayerOps, buffers: BatchBuffers, latents: Tensor, *modulations: Tensor
) -> None:
    transformer.write_kv(latents, AdaLNModulation(*modulations), buffers, ops)


def _filled(values: Sequence[float], device: torch.device) -> Tensor:
    """fp32 [B] on `device`, without waiting for a copy."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])

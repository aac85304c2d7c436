"""Passes in fused kernels, which read from device memory what each row addresses; replayed from graphs.

A set of buffers serves all batches of one shape. Between two passes other rows are loaded into it: what a pass
reads stays in place, and a recorded pass is good for any run at any fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from engines.cache.kv_cache import KVCache
from engines.cache.prompt_kv import EncodedPrompt
from engines.config.networks import TransformerConfig
from engines.device.cuda_graph import Capture, CudaGraphed
from engines.errors import ConfigError
from engines.runner.batch import BatchBuffers, raw_plane, window_planes
from engines.runner.modulation import ModulationCache
from engines.runner.prompt_encoding import encode_prompt
from engines.runner.rows import Row, Shape, TokenGrid
from engines.text.prompt import Prompt
from engines.wan.fused_ops import AttentionOps, FusedOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.attention.rope import frame_freqs, spatial_freqs
from kernels.dispatch import KernelBackends
from kernels.flow_step import flow_step, flow_step_reference


class FusedPass:
    """A pass in kernels, over the rows that were loaded last."""

    def __init__(self, runner: FusedRunner, shape: Shape) -> None:
        self._runner = runner
        self.buffers = runner.buffers(shape)
        self._rows: Sequence[Row] = ()
        self._denoise = runner.recorded(partial(_denoise, runner, self.buffers))
        self._write_kv = runner.recorded(partial(_write_kv, runner, self.buffers))

    def load(self, rows: Sequence[Row]) -> None:
        """Take other rows of the same shape."""
        self._rows = rows
        self.buffers.load(rows)

    def rotate_slots(self) -> None:
        """All rows' slots in one kernel."""
        self._runner.rotate_slots(self._rows)

    def denoise(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        """The next latents; from a graph, only until the next pass."""
        made = self._denoise(latents, latents if noise is None else noise, *self._modulation())
        assert made is not None
        return made

    def write_kv(self, latents: Tensor) -> None:
        """Keys and values only."""
        self._write_kv(latents, *self._modulation())

    def _modulation(self) -> AdaLNModulation:
        return self._runner.modulations.batched([row.level.timestep for row in self._rows])


class FusedRunner:
    """Runs passes in the kernels of `backends`, recorded by `capture` if there is one."""

    def __init__(self, transformer: CausalTransformer, backends: KernelBackends, capture: Capture | None) -> None:
        if capture is not None and not backends.supports_cuda_graphs:
            raise ConfigError(f"graphs need kernels that read from the device what rows address; got {backends}")
        self.transformer = transformer
        self.modulations = ModulationCache(transformer)
        self.layer_ops = FusedOps(transformer, backends)
        self._backends = backends
        self.flow_step = flow_step if backends.flow_step == "triton" else flow_step_reference
        self._ops = AttentionOps.of(backends, transformer.device)
        self._capture = capture
        self._cache: KVCache | None = None
        self._passes: dict[Shape, FusedPass] = {}
        self._spatial: dict[TokenGrid, Tensor] = {}

    @property
    def config(self) -> TransformerConfig:
        """The transformer's."""
        return self.transformer.config

    @property
    def int8_keys(self) -> bool:
        """As the backends say."""
        return self._backends.keys == "int8"

    @property
    def cache(self) -> KVCache:
        """What passes run over."""
        assert self._cache is not None
        return self._cache

    def bind(self, cache: KVCache) -> None:
        """Forget what was recorded: it knows the pools that there were."""
        self._cache = cache
        self._passes.clear()

    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        """Padding is one key."""
        return encode_prompt(self.transformer, prompt, folded=True)

    def prepare(self, rows: Sequence[Row]) -> FusedPass:
        """The pass of the rows' shape, loaded with them."""
        shape = Shape.of(rows)
        if shape not in self._passes:
            self._passes[shape] = FusedPass(self, shape)
        self._passes[shape].load(rows)
        return self._passes[shape]

    def buffers(self, shape: Shape) -> BatchBuffers:
        """Buffers for batches of `shape`."""
        return BatchBuffers(self._ops, self.cache, shape, self._spatial_freqs(shape.grid), self._prompt_tokens)

    def recorded(self, run: partial[Tensor] | partial[None]) -> CudaGraphed | partial[Tensor] | partial[None]:
        """`run`, from a recording where there are recordings."""
        return run if self._capture is None else CudaGraphed(run, self._capture)

    def rotate_slots(self, rows: Sequence[Row]) -> None:
        """Turn the rows' fixed slots to where they are now."""
        tokens = rows[0].kv.frame_tokens
        slots, raw_slots, positions = [], [], []
        for row in rows:
            for fixed in row.placement.fixed:
                assert row.kv.raw is not None
                slots.append(row.kv.window.start + fixed.slot * tokens)
                raw_slots.append(row.kv.raw.start + fixed.slot * tokens)
                positions.append(fixed.position)
        if not slots:
            return
        here = _to_device(torch.tensor([slots, raw_slots], dtype=torch.int32), self.cache.device)
        freqs = _to_device(frame_freqs(positions, self.cache.layout.head_dim), self.cache.device)
        planes, raw = window_planes(self.cache), raw_plane(self.cache)
        self._ops.rotate_slots(planes, raw, freqs, here[0], here[1], tokens)

    @property
    def _prompt_tokens(self) -> int:
        return self.config.text_len

    def _spatial_freqs(self, grid: TokenGrid) -> Tensor:
        if grid not in self._spatial:
            freqs = spatial_freqs(grid.rows, grid.columns, self.cache.layout.head_dim)
            self._spatial[grid] = freqs.to(self.cache.device)
        return self._spatial[grid]


def _denoise(
    runner: FusedRunner, buffers: BatchBuffers, latents: Tensor, noise: Tensor, *modulation: Tensor
) -> Tensor:
    flow = runner.transformer.denoise(latents, AdaLNModulation(*modulation), buffers, runner.layer_ops)
    return runner.flow_step(latents, flow, noise, buffers.sigma, buffers.next_sigma)


def _write_kv(runner: FusedRunner, buffers: BatchBuffers, latents: Tensor, *modulation: Tensor) -> None:
    runner.transformer.write_kv(latents, AdaLNModulation(*modulation), buffers, runner.layer_ops)


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x

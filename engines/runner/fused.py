"""Passes in fused kernels, which read from device memory what each row addresses; replayed from graphs.

A set of buffers serves all batches of one shape. Between two passes other rows are loaded into it: what a pass
reads stays in place, and a recorded pass is good for any run at any fill.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from engines.cache.kv_cache import KVCache, KVFormat
from engines.cache.prompt_kv import EncodedPrompt
from engines.config.networks import TransformerConfig
from engines.device.cuda_graph import Capture, CudaGraphed
from engines.device.host_copy import to_device
from engines.device.idle import wait_until_idle
from engines.errors import ConfigError
from engines.runner.batch import BatchBuffers, raw_plane, window_planes
from engines.runner.modulation import ModulationCache
from engines.runner.prompt_encoding import encode_prompt
from engines.runner.rows import Row, Shape
from engines.runner.selection import kv_format_of
from engines.runner.spatial import SpatialFreqs
from engines.text.prompt import Prompt
from engines.wan.fused_ops import AttentionOps, FusedOps
from engines.wan.quantized_ops import QuantizedOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.attention.rope import frame_freqs
from kernels.dispatch import KernelBackends
from kernels.flow_step import flow_step, flow_step_reference

logger = logging.getLogger(__name__)

MOST_UNRECORDED = 64
"""Shapes without a recording whose buffers are kept, the latest: clients choose the size of their pictures."""


class FusedPass:
    """A pass in kernels, over the rows that were loaded last."""

    def __init__(self, runner: FusedRunner, shape: Shape) -> None:
        self._runner = runner
        self._shape = shape
        self.buffers = runner.buffers(shape)
        self._rows: Sequence[Row] = ()
        self._told = False
        self._denoise = runner.recorded(partial(_denoise, runner, self.buffers), self._may_record)
        self._write_kv = runner.recorded(partial(_write_kv, runner, self.buffers), self._may_record)

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

    def _may_record(self) -> bool:
        """Not once streams are served; then it is said, once."""
        if not self._runner.recording and not self._told:
            logger.warning("not warmed up: its kernels are launched one by one", extra={"shape": str(self._shape)})
            self._told = True
        return self._runner.recording

    def _modulation(self) -> AdaLNModulation:
        return self._runner.modulations.batched([row.level.timestep for row in self._rows])


class FusedRunner:
    """Runs passes in the kernels of `backends`, recorded by `capture` if there is one.

    What has not been recorded before `end_recording` runs without: a capture in the middle of serving would hold
    up every stream, and its failure end the process.
    """

    def __init__(self, transformer: CausalTransformer, backends: KernelBackends, capture: Capture | None) -> None:
        if capture is not None and not backends.supports_cuda_graphs:
            raise ConfigError(f"graphs need kernels that read from the device what rows address; got {backends}")
        self.transformer = transformer
        self.modulations = ModulationCache(transformer)
        quantized = transformer.config.quantization is not None
        self.layer_ops = (QuantizedOps if quantized else FusedOps)(transformer, backends)
        self._backends = backends
        self.flow_step = flow_step if backends.flow_step == "triton" else flow_step_reference
        self._ops = AttentionOps.of(backends, transformer.device)
        self._capture = capture
        self.recording = capture is not None
        self._cache: KVCache | None = None
        self._passes: dict[Shape, FusedPass] = {}
        self._unrecorded: OrderedDict[Shape, FusedPass] = OrderedDict()
        self._spatial = SpatialFreqs(transformer.config.head_dim, transformer.device)

    @property
    def config(self) -> TransformerConfig:
        """The transformer's."""
        return self.transformer.config

    @property
    def kv_format(self) -> KVFormat:
        """As the backends say."""
        return kv_format_of(self._backends)

    @property
    def cache(self) -> KVCache:
        """What passes run over."""
        assert self._cache is not None
        return self._cache

    def bind(self, cache: KVCache) -> None:
        """Forget what was recorded: it knows the pools that there were."""
        self.unbind()
        self._cache = cache

    def unbind(self) -> None:
        """Let go of pools and recordings, which work that has been queued may still use."""
        if self._cache is not None:
            wait_until_idle(self._cache.device)
        self._cache = None
        self._passes.clear()
        self._unrecorded.clear()

    def end_recording(self) -> None:
        """Launch the kernels of what has not been recorded one by one."""
        self.recording = False

    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        """Padding is one key."""
        return encode_prompt(self.transformer, prompt, folded=True)

    def prepare(self, rows: Sequence[Row]) -> FusedPass:
        """The pass of the rows' shape, loaded with them."""
        made = self._pass_of(Shape.of(rows))
        made.load(rows)
        return made

    def buffers(self, shape: Shape) -> BatchBuffers:
        """Buffers for batches of `shape`."""
        return BatchBuffers(self._ops, self.cache, shape, self._spatial.of(shape.grid), self.config.text_len)

    def recorded(
        self, run: partial[Tensor] | partial[None], may_record: Callable[[], bool]
    ) -> CudaGraphed | partial[Tensor] | partial[None]:
        """`run`, from a recording where there are recordings."""
        return run if self._capture is None else CudaGraphed(run, self._capture, may_record)

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
        here = to_device(torch.tensor([slots, raw_slots], dtype=torch.int32), self.cache.device)
        freqs = to_device(frame_freqs(positions, self.cache.layout.head_dim), self.cache.device)
        planes, raw = window_planes(self.cache), raw_plane(self.cache)
        self._ops.rotate_slots(planes, raw, freqs, here[0], here[1], tokens)

    def _pass_of(self, shape: Shape) -> FusedPass:
        if shape in self._passes:
            return self._passes[shape]
        if self.recording:
            self._passes[shape] = FusedPass(self, shape)
            return self._passes[shape]
        if shape not in self._unrecorded:
            self._unrecorded[shape] = FusedPass(self, shape)
            if len(self._unrecorded) > MOST_UNRECORDED:
                self._unrecorded.popitem(last=False)
        self._unrecorded.move_to_end(shape)
        return self._unrecorded[shape]


def _denoise(
    runner: FusedRunner, buffers: BatchBuffers, latents: Tensor, noise: Tensor, *modulation: Tensor
) -> Tensor:
    flow = runner.transformer.denoise(latents, AdaLNModulation(*modulation), buffers, runner.layer_ops)
    return runner.flow_step(latents, flow, noise, buffers.sigma, buffers.next_sigma)


def _write_kv(runner: FusedRunner, buffers: BatchBuffers, latents: Tensor, *modulation: Tensor) -> None:
    runner.transformer.write_kv(latents, AdaLNModulation(*modulation), buffers, runner.layer_ops)

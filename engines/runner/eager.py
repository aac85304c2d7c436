"""Passes in PyTorch's own operators, row by row: what defines the results.

Each row is computed by the same calls as alone, so a stream is bit-equal whatever else is in its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engines.cache.kv_cache import PLAIN_KV, KVCache, KVFormat
from engines.cache.prompt_kv import EncodedPrompt
from engines.cache.rolling_window import RollingWindow
from engines.cache.window import NOT_WRITTEN
from engines.config.networks import TransformerConfig
from engines.device.idle import wait_until_idle
from engines.runner.modulation import ModulationCache
from engines.runner.prompt_encoding import encode_prompt
from engines.runner.rows import Row
from engines.runner.slot_choice import queue_steps, slot_queues
from engines.runner.spatial import SpatialFreqs
from engines.sampling.flow_schedule import add_noise, predict_clean
from engines.text.prompt import Prompt
from engines.wan.layers import Attention
from engines.wan.transformer import CausalTransformer
from kernels.attention.kv_view import KVPlanes
from kernels.attention.reference import attend
from kernels.attention.rope import apply_rope, frame_freqs, join_freqs
from kernels.slot_choice.slot_queue import choose_slots_reference, frame_means_reference


class EagerAttention:
    """The `AttentionContext` of one row."""

    def __init__(self, cache: KVCache, row: Row, spatial: Tensor) -> None:
        self._cache = cache
        self._windows = cache.windows
        self._raw = cache.raw
        self.prompt = cache.prompts.pool.state(row.prompt.run, row.prompt.run.tokens)
        self.row = row
        self.raw_dim = cache.layout.raw_dim
        frame = frame_freqs(row.placement.positions, cache.layout.head_dim).to(spatial.device)
        self.freqs_cis = join_freqs(frame, spatial)

    @property
    def window(self) -> Mapping[str, Tensor]:
        """Keys and values [layers, tokens, heads, channels] of the row's window."""
        return self._windows.state(self.row.kv.window, self.row.kv.window.tokens)

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write, then attend what the row addresses."""
        self.write_kv(layer, attention, k, v)
        begin, end = self.row.bounds
        planes = self._windows.planes
        keys, values = (planes[name].tensor[layer, begin:end] for name in ("keys", "values"))
        return attend(apply_rope(attention.queries(q)[0], self.freqs_cis), keys, values).unsqueeze(0)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """Put rotated keys and values into the row's slots, and raw keys where those move."""
        normed = attention.keys(k)[0]
        self.keep(layer, apply_rope(normed, self.freqs_cis), attention.heads_of(v)[0], normed[..., : self.raw_dim])

    def keep(self, layer: int, keys: Tensor, values: Tensor, raw_keys: Tensor) -> None:
        """The same of what is rotated already."""
        row, window = self.row, self.window
        slots = row.slots(layer) if row.write is None else self._chosen(layer, keys, values)
        self._write(window["keys"][layer], keys, slots)
        self._write(window["values"][layer], values, slots)
        if row.kv.raw is not None:
            raw = self._raw.state(row.kv.raw, row.kv.raw.tokens)["raw_keys"]
            self._write(raw[layer], raw_keys, row.raw_slots(layer))

    def _chosen(self, layer: int, keys: Tensor, values: Tensor) -> Sequence[int]:
        """Slots for a layer's keys and values [T, heads, D]."""
        row, frames = self.row, self.row.placement.frames
        assert isinstance(row.kv.size, RollingWindow)
        queues = slot_queues(self._cache, row.kv.size, queue_steps([row]).to(keys.device))
        staged = KVPlanes(keys.unsqueeze(0), values.unsqueeze(0).contiguous())
        means = queues.no_means if queues.rule.threshold is None else frame_means_reference(staged, frames)
        slots = torch.empty(1, frames, dtype=torch.int32, device=keys.device)
        choose_slots_reference(queues, means, layer, slots)
        return [int(slot) for slot in slots[0]]

    def _write(self, run: Tensor, rows: Tensor, slots: Sequence[int]) -> None:
        tokens = self.row.kv.frame_tokens
        for slot, frame in zip(slots, rows.split(tokens), strict=True):
            if slot != NOT_WRITTEN:
                run[slot * tokens : (slot + 1) * tokens] = frame

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        """Attend the row's prompt."""
        keys, values = self.prompt["keys"][layer], self.prompt["values"][layer]
        return attend(attention.queries(q)[0], keys, values, self.row.prompt.last_log).unsqueeze(0)


class EagerPass:
    """A pass over rows, one after the other."""

    def __init__(self, runner: EagerRunner, rows: Sequence[Row]) -> None:
        self._runner = runner
        self._rows = rows

    def rotate_slots(self) -> None:
        """From the raw keys, in all layers at once."""
        for row in self._rows:
            self._runner.rotate_slots(row)

    def denoise(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        """Flow, then the step in fp64 and fp32."""
        return torch.stack([
            self._step(row, latents[i], None if noise is None else noise[i]) for i, row in enumerate(self._rows)
        ])  # fmt: skip

    def _step(self, row: Row, latents: Tensor, noise: Tensor | None) -> Tensor:
        clean = predict_clean(latents, self.flow(row, latents), row.level.sigma)
        return clean if noise is None else add_noise(clean, noise, row.level.next_sigma)

    def flow(self, row: Row, latents: Tensor) -> Tensor:
        """Of a row's latents [frames, channels, h/8, w/8]; its keys and values are written."""
        runner = self._runner
        modulation = runner.modulations.at(row.level.timestep)
        return runner.transformer.denoise(latents.unsqueeze(0), modulation, runner.attention(row))[0]

    def write_kv(self, latents: Tensor) -> None:
        """As the transformer."""
        for row, frames in zip(self._rows, latents, strict=True):
            self.write_row(row, frames)

    def write_row(self, row: Row, latents: Tensor) -> None:
        """Keys and values of a row's latents [frames, channels, h/8, w/8]."""
        runner = self._runner
        modulation = runner.modulations.at(row.level.timestep)
        runner.transformer.write_kv(latents.unsqueeze(0), modulation, runner.attention(row))


class EagerRunner:
    """Runs passes in PyTorch's own operators."""

    def __init__(self, transformer: CausalTransformer) -> None:
        self.transformer = transformer
        self.modulations = ModulationCache(transformer)
        self._cache: KVCache | None = None
        self._spatial = SpatialFreqs(transformer.config.head_dim, transformer.device)

    @property
    def config(self) -> TransformerConfig:
        """The transformer's."""
        return self.transformer.config

    @property
    def kv_format(self) -> KVFormat:
        """PyTorch's attention knows no INT8."""
        return PLAIN_KV

    def bind(self, cache: KVCache) -> None:
        """Nothing else depends on it."""
        self._cache = cache

    def unbind(self) -> None:
        """Let go of the cache."""
        wait_until_idle(self.transformer.device)
        self._cache = None

    def end_recording(self) -> None:
        """Nothing is recorded here."""

    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        """CUDA's attention takes no fp32 bias beside bf16 queries, so padding is one key on a CPU only."""
        return encode_prompt(self.transformer, prompt, folded=self.transformer.device.type != "cuda")

    def prepare(self, rows: Sequence[Row]) -> EagerPass:
        """A pass over rows."""
        return EagerPass(self, rows)

    def attention(self, row: Row) -> EagerAttention:
        """What a row's layers attend."""
        assert self._cache is not None
        return EagerAttention(self._cache, row, self._spatial.of(row.grid))

    def rotate_slots(self, row: Row) -> None:
        """Turn a row's fixed slots to where they are now."""
        if not row.placement.fixed:
            return
        assert self._cache is not None
        assert row.kv.raw is not None
        tokens, channels = row.kv.frame_tokens, self._cache.layout.raw_dim
        slots = [fixed.slot for fixed in row.placement.fixed]
        frame = frame_freqs([fixed.position for fixed in row.placement.fixed], self._cache.layout.head_dim)
        keys = self._cache.windows.state(row.kv.window, row.kv.window.tokens)["keys"]
        raw = self._cache.raw.state(row.kv.raw, row.kv.raw.tokens)["raw_keys"]
        for slot, freqs in zip(slots, frame.to(keys.device), strict=True):
            here = slice(slot * tokens, (slot + 1) * tokens)
            keys[:, here, :, :channels] = apply_rope(raw[:, here], freqs.expand(tokens, -1))

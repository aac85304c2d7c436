"""LongLive's bookkeeping written down literally, token by token, to hold the window against.

From the description of the published v1.0 (its cache, its recache, its relative mode), with nothing of Longtake's
slots: keys roll to the left, queries and all keys are rotated anew in every pass under relative RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.sampling.flow_schedule import add_noise, predict_clean
from engines.sampling.noise import SeededNoise
from engines.text.prompt import Prompt
from engines.wan.layers import Attention
from engines.wan.transformer import CausalTransformer
from kernels.attention.rope import apply_rope, frame_freqs, join_freqs, spatial_freqs


class LayerCache:
    """One layer's keys and values [window tokens, heads, channels], and LongLive's two counters."""

    def __init__(self, tokens: int, heads: int, channels: int, dtype: torch.dtype) -> None:
        self.k, self.v = torch.zeros(2, tokens, heads, channels, dtype=dtype)
        self.global_end = self.local_end = 0

    def insert(self, k: Tensor, v: Tensor, start: int, sink: int, rewrite_sink: bool) -> None:
        n, end, size = k.shape[0], start + k.shape[0], self.k.shape[0]
        repeat = end <= self.global_end and start > 0
        if end > self.global_end and n + self.local_end > size:
            evicted = n + self.local_end - size
            kept = self.local_end - evicted - sink
            for cache in (self.k, self.v):
                cache[sink : sink + kept] = cache[sink + evicted : sink + evicted + kept].clone()
            local_end = self.local_end + (end - self.global_end) - evicted
        else:
            local_end = self.local_end + end - self.global_end
        first = local_end - n
        if not repeat:
            self.global_end, self.local_end = end, local_end
        else:
            local_end, first = self.local_end, self.local_end - n
        skipped = max(0, sink - first) if repeat and not rewrite_sink else 0
        self.k[first + skipped : local_end] = k[skipped:]
        self.v[first + skipped : local_end] = v[skipped:]


class LongLiveMemory:
    """An `AttentionContext` for one stream, over LongLive's caches."""

    def __init__(self, transformer: CausalTransformer, config: StreamConfig) -> None:
        sizes = transformer.config
        self.config = config
        self.frame_tokens = config.rows * config.columns
        self.layers = [
            LayerCache(config.window_frames * self.frame_tokens, sizes.heads, sizes.head_dim, transformer.dtype)
            for _ in range(sizes.layers)
        ]
        self.head_dim = sizes.head_dim
        self.prompt: tuple[Tensor, Tensor]
        self.start_frame = 0
        self.rewrite_sink = False

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        k, v = attention.keys(k)[0], attention.heads_of(v)[0]
        if self.config.rope == "absolute":
            k = apply_rope(k, self._turns(self.start_frame, k))
        sink = self.config.sink_frames * self.frame_tokens
        self.layers[layer].insert(k, v, self.start_frame * self.frame_tokens, sink, self.rewrite_sink)

    def self_attention(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.write_kv(layer, attention, k, v)
        cache, q = self.layers[layer], attention.queries(q)[0]
        k, v = cache.k[: cache.local_end], cache.v[: cache.local_end]
        if self.config.rope == "absolute":
            return _softmax_attention(apply_rope(q, self._turns(self.start_frame, q)), k, v)
        last = (cache.local_end - q.shape[0]) // self.frame_tokens
        return _softmax_attention(apply_rope(q, self._turns(last, q)), apply_rope(k, self._turns(0, k)), v)

    def cross_attention(self, layer: int, attention: Attention, q: Tensor) -> Tensor:
        return _softmax_attention(attention.queries(q)[0], self.prompt[0][layer], self.prompt[1][layer])

    def _turns(self, frame: int, x: Tensor) -> Tensor:
        spatial = spatial_freqs(self.config.rows, self.config.columns, self.head_dim)
        return join_freqs(
            frame_freqs(range(frame, frame + x.shape[0] // self.frame_tokens), self.head_dim), spatial
        )


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("thd,shd->hts", q.float(), k.float()) * q.shape[-1] ** -0.5
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v.float()).to(q.dtype).unsqueeze(0)


@torch.inference_mode()
def roll_longlive(
    transformer: CausalTransformer, config: StreamConfig, blocks: int, switches: Mapping[int, Prompt]
) -> Tensor:
    """Latents [frames, channels, h/8, w/8] of a clip; all rows of every prompt are attended, padding too."""
    noise = SeededNoise(config.seed)
    memories = [LongLiveMemory(transformer, config) for _ in (config.steps if config.context == "steps" else [0])]
    made: list[Tensor] = []
    for block in range(blocks):
        levels, start = _levels(config, block), sum(map(len, made))
        if block in switches:
            for memory in memories:
                memory.prompt = _padded(transformer, switches[block])
            if block > 0:
                for lane, memory in enumerate(memories):
                    _recache(transformer, config, memory, made, noise, lane)
        for memory in memories:
            memory.start_frame, memory.rewrite_sink = start, False
        shape = _shape(transformer, config, block)
        x = config.start_level * noise.draw(block, 0, shape).to(transformer.dtype)
        for step, (time, sigma) in enumerate(levels):
            memory = memories[step if len(memories) > 1 else 0]
            clean = predict_clean(x, _call(transformer, x, time, memory), sigma)
            if step + 1 < len(levels):
                x = add_noise(clean, noise.draw(block, step + 1, shape).to(x.dtype), levels[step + 1][1])
        if config.context == "clean" or (config.context == "noisy" and block == 0):
            _call(transformer, clean, 0.0, memories[0])
        made.append(clean)
    return torch.cat(made)


def _recache(
    transformer: CausalTransformer, config: StreamConfig, memory: LongLiveMemory, made: list[Tensor],
    noise: SeededNoise, lane: int,
) -> None:  # fmt: skip
    """One pass over the window, at the noise at which its blocks left their keys and values."""
    time, seen = 0.0, list(made)
    if config.context != "clean":
        time, sigma = _levels(config, 1)[lane if config.context == "steps" else -1]
        for block, clean in enumerate(made):
            draw = lane if config.context == "steps" else len(_levels(config, block)) - 1
            fresh = noise.draw(block, draw, _shape(transformer, config, block)).to(clean.dtype)
            seen[block] = (1 - sigma) * clean + sigma * fresh
    window = torch.cat(seen)[-config.window_frames :]
    memory.start_frame = sum(map(len, made)) - len(window)
    memory.rewrite_sink = config.sink == "local"
    _call(transformer, window, time, memory)


def _levels(config: StreamConfig, block: int) -> list[tuple[float, float]]:
    """Timestep and level of each step of a block, from the shifted table written out."""
    steps = config.first_steps if block == 0 and config.first_steps else config.steps
    table = [config.shift * s / (1 + (config.shift - 1) * s) for s in (1 - i / 1000 for i in range(1000))]
    levels = [(1000 * table[1000 - step], table[1000 - step]) for step in steps]
    if config.start_level != 1:
        levels[0] = (1000 * config.start_level, config.start_level)
    return levels


def _shape(transformer: CausalTransformer, config: StreamConfig, block: int) -> tuple[int, int, int, int]:
    frames = config.first_block_frames if block == 0 and config.first_block_frames else config.block_frames
    return frames, transformer.config.latent_channels, config.height // 8, config.width // 8


def _call(transformer: CausalTransformer, x: Tensor, time: float, memory: LongLiveMemory) -> Tensor:
    return transformer(x.unsqueeze(0), torch.full((1, x.shape[0]), time), memory)[0]


def _padded(transformer: CausalTransformer, prompt: Prompt) -> tuple[Tensor, Tensor]:
    rows = torch.zeros(transformer.config.text_len, transformer.config.text_dim, dtype=prompt.rows.dtype)
    rows[: len(prompt.rows)] = prompt.rows
    return transformer.prompt_kv(rows)

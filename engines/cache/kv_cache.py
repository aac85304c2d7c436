"""All that streams keep in the pools of one device: windows, raw keys of moving slots, prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from engines.cache.kv_pool import KVPool, KVRun, Plane
from engines.cache.prompt_kv import PromptPool
from engines.cache.window import WindowPolicy, window_policy
from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig

SCALE_BYTES = 4
"""Of a key or value in INT8, of one head: an fp32."""


@dataclass(frozen=True)
class CacheSize:
    """Tokens of each pool. A prompt can be read beside those that sessions follow, so there is one to spare."""

    window: int
    raw: int
    prompts: int

    @classmethod
    def of_sessions(cls, sessions: int, policy: WindowPolicy, frame_tokens: int, text_len: int) -> Self:
        """For so many sessions of one kind."""
        window, raw = policy.frames * frame_tokens, policy.raw_frames * frame_tokens
        return cls(sessions * window, sessions * raw, (sessions + 1) * text_len)


def cache_size(sessions: int, config: StreamConfig, transformer: TransformerConfig) -> CacheSize:
    """What so many streams of one kind take."""
    size = CacheSize.of_sessions(sessions, window_policy(config), config.frame_tokens, transformer.text_len)
    return replace(size, window=config.lanes * size.window, raw=config.lanes * size.raw)


class KVFormat(NamedTuple):
    """Whether windows keep their keys, and their values, in INT8 or as the model computes them."""

    int8_keys: bool = False
    int8_values: bool = False

    def __str__(self) -> str:
        """As errors say it."""
        return f"{_kept(self.int8_keys)} keys and {_kept(self.int8_values)} values"


def _kept(int8: bool) -> str:
    return "INT8" if int8 else "plain"


PLAIN_KV = KVFormat()


@dataclass(frozen=True)
class CacheLayout:
    """What a token takes: layers, heads and channels of a model, its dtype, and the format of windows.

    `raw_dim` are the channels of a head that turn with the frame.
    """

    layers: int
    heads: int
    head_dim: int
    raw_dim: int
    dtype: torch.dtype
    kv_format: KVFormat = PLAIN_KV

    @classmethod
    def of(cls, config: TransformerConfig, dtype: torch.dtype, kv_format: KVFormat = PLAIN_KV) -> Self:
        """That of a transformer."""
        return cls(config.layers, config.heads, config.head_dim, config.frame_channels, dtype, kv_format)

    @property
    def window_token_bytes(self) -> int:
        """Keys and values, with their scales if they have any."""
        return self.layers * self.heads * sum(self._head_bytes(int8) for int8 in self.kv_format)

    def _head_bytes(self, int8: bool) -> int:
        """Of a head's key or value."""
        return self.head_dim + SCALE_BYTES if int8 else self.head_dim * self.dtype.itemsize

    @property
    def raw_token_bytes(self) -> int:
        """Of what turns, which stays in the model's dtype."""
        return self.layers * self.heads * self.raw_dim * self.dtype.itemsize

    @property
    def prompt_token_bytes(self) -> int:
        """Keys and values."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize

    def nbytes(self, size: CacheSize) -> int:
        """Of all pools together."""
        return (
            size.window * self.window_token_bytes
            + size.raw * self.raw_token_bytes
            + size.prompts * self.prompt_token_bytes
        )


@dataclass(eq=False)
class StreamKV:
    """What one stream holds: the run of its window, that of the raw keys of its moving slots, and their policy."""

    policy: WindowPolicy
    frame_tokens: int
    window: KVRun
    raw: KVRun | None


class KVCache:
    """The pools of one device, allocated once."""

    def __init__(self, layout: CacheLayout, size: CacheSize, device: torch.device) -> None:
        self.layout = layout
        self.size = size
        self.device = device
        windows = self._window_planes("keys", "key_scales", layout.kv_format.int8_keys)
        windows |= self._window_planes("values", "value_scales", layout.kv_format.int8_values)
        prompts = {name: self._plane(size.prompts, layout.dtype) for name in ("keys", "values")}
        raw = torch.empty(layout.layers, size.raw, layout.heads, layout.raw_dim, dtype=layout.dtype, device=device)
        self.windows = KVPool("a session's window", windows)
        self.raw = KVPool("the sink of a session", {"raw_keys": Plane(raw)})
        self.prompts = PromptPool(KVPool("a prompt", prompts))

    def _window_planes(self, name: str, scales_name: str, int8: bool) -> dict[str, Plane]:
        """Of keys or values, and of their scales if they have any."""
        tokens, layout = self.size.window, self.layout
        if not int8:
            return {name: self._plane(tokens, layout.dtype)}
        scales = torch.empty(layout.layers, layout.heads, tokens, device=self.device)
        return {name: self._plane(tokens, torch.int8), scales_name: Plane(scales, token_dim=2)}

    def _plane(self, tokens: int, dtype: torch.dtype) -> Plane:
        shape = (self.layout.layers, tokens, self.layout.heads, self.layout.head_dim)
        return Plane(torch.empty(shape, dtype=dtype, device=self.device))

    def open(self, policy: WindowPolicy, frame_tokens: int) -> StreamKV:
        """What a stream needs, with nothing of use in it. Raises PoolFull; nothing is taken then."""
        window = self.windows.take(policy.frames * frame_tokens)
        try:
            raw = self.raw.take(policy.raw_frames * frame_tokens) if policy.raw_frames else None
        except BaseException:
            self.windows.give_back(window)
            raise
        return StreamKV(policy, frame_tokens, window, raw)

    def open_lanes(self, policy: WindowPolicy, frame_tokens: int, count: int) -> tuple[StreamKV, ...]:
        """What a stream of `count` windows needs. Raises PoolFull; nothing is taken then."""
        return self._all([partial(self.open, policy, frame_tokens)] * count)

    def fork_lanes(self, lanes: Sequence[StreamKV]) -> tuple[StreamKV, ...]:
        """The same once more. Raises PoolFull; nothing is taken then."""
        return self._all([partial(self.fork, lane) for lane in lanes])

    def _all(self, makers: Sequence[Callable[[], StreamKV]]) -> tuple[StreamKV, ...]:
        made: list[StreamKV] = []
        try:
            made.extend(make() for make in makers)
        except BaseException:
            for lane in made:
                self.close(lane)
            raise
        return tuple(made)

    def fork(self, held: StreamKV) -> StreamKV:
        """The same once more. Raises PoolFull."""
        fork = self.open(held.policy, held.frame_tokens)
        try:
            self.windows.copy(held.window, fork.window)
            if held.raw is not None and fork.raw is not None:
                self.raw.copy(held.raw, fork.raw)
        except BaseException:
            self.close(fork)
            raise
        return fork

    def close(self, held: StreamKV) -> None:
        """Give everything back."""
        self.windows.give_back(held.window)
        if held.raw is not None:
            self.raw.give_back(held.raw)

    def state(self, held: StreamKV, frames: int) -> dict[str, Tensor]:
        """What a stream's first `frames` slots hold, by name: views."""
        state = self.windows.state(held.window, frames * held.frame_tokens)
        if held.raw is not None:
            raw_frames = min(frames, held.policy.raw_frames)
            state |= self.raw.state(held.raw, raw_frames * held.frame_tokens)
        return state

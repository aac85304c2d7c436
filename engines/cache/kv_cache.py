"""All that streams keep in the pools of one device: windows, raw keys of moving slots, prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from engines.cache.kv_pool import KVPool, KVRun, Plane
from engines.cache.prompt_kv import PromptPool
from engines.cache.rolling_window import RollingWindow
from engines.cache.window import WindowSize, window_policy
from engines.config.networks import TransformerConfig
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig

SCALE_BYTES = 4
"""Of a key or value in INT8, of one head: an fp32."""

RECORD = 260
"""Integers of a queue's record, as `kernels.slot_choice.slot_queue` lays it out and checks."""


@dataclass(frozen=True)
class CacheSize:
    """Tokens of each pool; slots whose means are kept, and records of queues.

    A prompt can be read beside those that sessions follow, so there is one to spare.
    """

    window: int
    raw: int
    prompts: int
    means: int = 0
    records: int = 0

    def at_least(self, other: CacheSize) -> CacheSize:
        """Room for what needs the one, or what needs the `other`."""
        return CacheSize(
            *(max(one, two) for one, two in zip(astuple(self), astuple(other), strict=True)),
        )

    @classmethod
    def of_windows(cls, count: int, window: WindowSize, frame_tokens: int, prompts: int) -> Self:
        """For so many windows of one kind, and tokens of prompts."""
        return cls(
            window=count * window.frames * frame_tokens,
            raw=count * window.raw_frames * frame_tokens,
            prompts=prompts,
            means=count * window.mean_frames,
            records=count * window.records,
        )


def cache_size(sessions: int, config: AnyStreamConfig, transformer: TransformerConfig) -> CacheSize:
    """What so many streams of one kind take. The rows of a stream batch may each have a prompt of their own."""
    if isinstance(config, VideoStreamConfig):
        windows = sessions * len(config.steps)
        prompts = (windows + 1) * transformer.text_len
        return CacheSize.of_windows(windows, RollingWindow.of(config), config.frame_tokens, prompts)
    prompts = (sessions + 1) * transformer.text_len
    return CacheSize.of_windows(sessions * config.lanes, window_policy(config), config.frame_tokens, prompts)


class KVFormat(NamedTuple):
    """Whether windows keep their keys, and their values, in INT8 or as the model computes them."""

    int8_keys: bool = False
    int8_values: bool = False

    @override
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

    @property
    def mean_bytes(self) -> int:
        """Of a slot's mean key and value, in fp32."""
        return 2 * self.layers * self.heads * self.head_dim * torch.float32.itemsize

    def nbytes(self, size: CacheSize) -> int:
        """Of all pools together."""
        return (
            size.window * self.window_token_bytes
            + size.raw * self.raw_token_bytes
            + size.prompts * self.prompt_token_bytes
            + size.means * self.mean_bytes
            + size.records * self.layers * RECORD * torch.int32.itemsize
        )


@dataclass(eq=False)
class StreamKV:
    """What one stream holds, by a run of each pool: its window, and what goes with it."""

    size: WindowSize
    frame_tokens: int
    window: KVRun
    raw: KVRun | None = None
    means: KVRun | None = None
    records: KVRun | None = None


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
        channels = layout.heads * layout.head_dim
        means = torch.empty(layout.layers, size.means, 2, channels, dtype=torch.float32, device=device)
        records = torch.empty(layout.layers, size.records, RECORD, dtype=torch.int32, device=device)
        self.means = KVPool("the means of a session's sink", {"sink_means": Plane(means)})
        self.records = KVPool("the slot queues of a session", {"records": Plane(records)})
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

    def open(self, size: WindowSize, frame_tokens: int) -> StreamKV:
        """What a stream needs; nothing of use is in its window, and zeros in means and queues.

        Raises PoolFull, or ConfigError where that will never do; nothing is taken then.
        """
        held = StreamKV(size, frame_tokens, self.windows.take(size.frames * frame_tokens))
        try:
            if size.raw_frames:
                held.raw = self.raw.take(size.raw_frames * frame_tokens)
            if size.mean_frames:
                held.means = _zeroed(self.means, size.mean_frames)
            if size.records:
                held.records = _zeroed(self.records, size.records)
        except BaseException:
            self.close(held)
            raise
        return held

    def clear(self, held: StreamKV) -> None:
        """As it was when it was opened."""
        for pool, run in ((self.means, held.means), (self.records, held.records)):
            if run is not None:
                _zero(pool, run)

    def open_lanes(self, size: WindowSize, frame_tokens: int, count: int) -> tuple[StreamKV, ...]:
        """What a stream of `count` windows needs. Raises PoolFull, or ConfigError; nothing is taken then."""
        self.windows.require_possible(count * size.frames * frame_tokens)
        return self._all([partial(self.open, size, frame_tokens)] * count)

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
        fork = self.open(held.size, held.frame_tokens)
        try:
            self.copy(held, fork)
        except BaseException:
            self.close(fork)
            raise
        return fork

    def copy(self, source: StreamKV, target: StreamKV) -> None:
        """All that one window holds into another one of its size."""
        for (pool, here), (_, there) in zip(self._runs(source), self._runs(target), strict=True):
            pool.copy(here, there)

    def close(self, held: StreamKV) -> None:
        """Give everything back."""
        for pool, run in self._runs(held):
            pool.give_back(run)

    def state(self, held: StreamKV, frames: int) -> dict[str, Tensor]:
        """What a stream's first `frames` slots hold, its means and queues, by name: views."""
        state = self.windows.state(held.window, frames * held.frame_tokens)
        if held.raw is not None:
            raw_frames = min(frames, held.size.raw_frames)
            state |= self.raw.state(held.raw, raw_frames * held.frame_tokens)
        for pool, run in ((self.means, held.means), (self.records, held.records)):
            if run is not None:
                state |= pool.state(run, run.tokens)
        return state

    def _runs(self, held: StreamKV) -> list[tuple[KVPool, KVRun]]:
        pools = (self.windows, self.raw, self.means, self.records)
        runs = (held.window, held.raw, held.means, held.records)
        return [(pool, run) for pool, run in zip(pools, runs, strict=True) if run is not None]


def _zeroed(pool: KVPool, tokens: int) -> KVRun:
    run = pool.take(tokens)
    _zero(pool, run)
    return run


def _zero(pool: KVPool, run: KVRun) -> None:
    for plane in pool.state(run, run.tokens).values():
        plane.zero_()

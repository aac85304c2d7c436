from __future__ import annotations

import pytest
import torch

from engines.cache.kv_cache import PLAIN_KV, CacheLayout, CacheSize, KVCache, KVFormat, cache_size
from engines.cache.prompt_kv import EncodedPrompt
from engines.cache.window import SinkWindow
from engines.config.presets import PRESETS, preset
from engines.config.stream import StreamConfig
from engines.errors import ConfigError, PoolFull
from kernels.attention.rope import frame_pairs

LONGLIVE = preset("longlive-1.3b").transformer
LAYOUT = CacheLayout(layers=2, heads=2, head_dim=12, raw_dim=4, dtype=torch.float32)
WINDOW = SinkWindow(frames=4, sink=1)


def cache(sessions: int = 2, layout: CacheLayout = LAYOUT) -> KVCache:
    size = CacheSize.of_windows(sessions, WINDOW, 3, prompts=8 * (sessions + 1))
    return KVCache(layout, size, torch.device("cpu"))


def encoded(tokens: int) -> EncodedPrompt:
    return EncodedPrompt(torch.full((2, tokens, 2, 12), float(tokens)), torch.zeros(2, tokens, 2, 12), 0.5)


def test_a_session_of_longlive_takes_3_45_gigabytes_in_bf16_0_15_raw_and_0_09_for_its_prompt() -> None:
    size, layout = cache_size(1, StreamConfig(), LONGLIVE), CacheLayout.of(LONGLIVE, torch.bfloat16)
    assert size.window * layout.window_token_bytes / 1e9 == pytest.approx(3.45, abs=0.005)
    assert size.raw * layout.raw_token_bytes / 1e9 == pytest.approx(0.15, abs=0.005)
    assert LONGLIVE.text_len * layout.prompt_token_bytes / 1e9 == pytest.approx(0.09, abs=0.005)


@pytest.mark.parametrize(
    ("kept", "gigabytes"),
    [(PLAIN_KV, 3.45), (KVFormat(int8_keys=True), 2.61), (KVFormat(int8_values=True), 2.61),
     (KVFormat(int8_keys=True, int8_values=True), 1.78)],
    ids=str,
)  # fmt: skip
def test_a_window_in_int8_takes_half_of_its_memory(kept: KVFormat, gigabytes: float) -> None:
    size, layout = cache_size(1, StreamConfig(), LONGLIVE), CacheLayout.of(LONGLIVE, torch.bfloat16, kept)
    assert size.window * layout.window_token_bytes / 1e9 == pytest.approx(gigabytes, abs=0.006)


@pytest.mark.parametrize("int8_keys", [False, True], ids=["plain keys", "INT8 keys"])
@pytest.mark.parametrize("int8_values", [False, True], ids=["plain values", "INT8 values"])
def test_pools_take_what_their_layout_says(int8_keys: bool, int8_values: bool) -> None:
    layout, size = (
        CacheLayout.of(LONGLIVE, torch.bfloat16, KVFormat(int8_keys, int8_values)),
        cache_size(2, StreamConfig(), LONGLIVE),
    )
    pools = KVCache(layout, size, torch.device("meta"))
    planes = [*pools.windows.planes.values(), *pools.raw.planes.values(), *pools.prompts.pool.planes.values()]
    assert sum(plane.tensor.nbytes for plane in planes) == layout.nbytes(size)


def test_there_is_room_for_so_many_sessions_and_no_more() -> None:
    pools = cache(sessions=2)
    held = [pools.open(WINDOW, 3) for _ in range(2)]
    with pytest.raises(PoolFull, match="a session's window needs 12 tokens"):
        pools.open(WINDOW, 3)
    pools.close(held[0])
    pools.open(WINDOW, 3)


def test_lanes_that_will_never_fit_together_are_told_from_those_that_do_not_fit_now() -> None:
    pools = cache(sessions=2)
    pools.open(WINDOW, 3)
    with pytest.raises(PoolFull):
        pools.open_lanes(WINDOW, 3, 2)
    with pytest.raises(ConfigError, match="a session's window needs 36 tokens, and there is memory for 24 in all"):
        pools.open_lanes(WINDOW, 3, 3)
    assert pools.windows.free == 12


def test_a_session_that_finds_no_room_for_its_sink_takes_nothing() -> None:
    pools = KVCache(LAYOUT, CacheSize(window=24, raw=3, prompts=8), torch.device("cpu"))
    pools.open(WINDOW, 3)
    with pytest.raises(PoolFull, match="the sink of a session"):
        pools.open(WINDOW, 3)
    assert pools.windows.free == 12


def test_a_fork_has_the_same_window_and_raw_keys() -> None:
    pools = cache()
    held = pools.open(WINDOW, 3)
    for number, plane in enumerate(pools.state(held, 4).values()):
        plane.fill_(number + 1)
    fork = pools.state(pools.fork(held), 4)
    assert {name: float(plane.max()) for name, plane in fork.items()} == {"keys": 1, "values": 2, "raw_keys": 3}
    assert {name: list(plane.shape) for name, plane in fork.items()} == {
        "keys": [2, 12, 2, 12], "values": [2, 12, 2, 12], "raw_keys": [2, 3, 2, 4],
    }  # fmt: skip


def test_a_prompt_is_encoded_once_for_all_who_follow_it() -> None:
    prompts, calls = cache().prompts, list[int]()

    def counted() -> EncodedPrompt:
        calls.append(3)
        return encoded(3)

    first, second = prompts.take("a lighthouse", counted), prompts.take("a lighthouse", counted)
    assert first is second
    assert calls == [3]
    assert float(prompts.pool.state(first.run, 3)["keys"].min()) == 3
    prompts.give_back(first)
    assert prompts.pool.free == 24 - 3
    prompts.give_back(second)
    assert prompts.pool.free == 24


def test_a_prompt_that_finds_no_room_leaves_the_others_alone() -> None:
    prompts = cache().prompts
    held = [prompts.take(key, lambda: encoded(8)) for key in "abc"]
    with pytest.raises(PoolFull, match="a prompt needs 1 tokens"):
        prompts.take("d", lambda: encoded(1))
    prompts.give_back(held[0])
    prompts.take("d", lambda: encoded(1))


def test_raw_keys_have_the_channels_that_turn_with_the_frame() -> None:
    for config in {model.transformer for model in PRESETS.values()}:
        assert config.frame_channels == 2 * frame_pairs(config.head_dim)

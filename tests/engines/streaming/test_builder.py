"""How many sessions a device is given room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engines.cache.kv_cache import KVFormat
from engines.config.stream import StreamConfig
from engines.errors import ConfigError, PoolFull
from engines.loading.footprint import session_bytes
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
from engines.text.prompt import Prompt
from kernels.dispatch import EAGER


def room_for(model: Model, stream: StreamConfig, sessions: int, *, decodes: bool = True) -> int:
    """Bytes for `sessions`, and one prompt that is read beside theirs."""
    kept = session_bytes(model.config, stream, torch.float32)
    return sessions * (sum(kept) - (0 if decodes else kept.decoder)) + kept.prompt


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"sessions": 0}, "sessions is 0; it must be at least 1"), ({"cache_bytes": 0}, "cache_bytes is 0; it must")],
)
def test_no_room_at_all_is_refused(small: StreamConfig, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EngineConfig(small, **wrong)


def test_sessions_that_do_not_fit_are_refused_with_how_many_would(model: Model, small: StreamConfig) -> None:
    config = EngineConfig(small, sessions=3, cache_bytes=room_for(model, small, 3) - 1)
    with pytest.raises(ConfigError, match=r"3 sessions of 32x48 keep .* 2 would fit"):
        build_generator(model, config)


def test_as_many_sessions_open_as_were_given_room(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    config = EngineConfig(small, sessions=2, cache_bytes=room_for(model, small, 2))
    generator = build_generator(model, config)
    for prompt in prompts[:2]:
        generator.set_prompt(generator.open(small), prompt)
    with pytest.raises(PoolFull):
        generator.open(small)


def test_windows_in_int8_need_less_room(model: Model, small: StreamConfig) -> None:
    kept = session_bytes(model.config, small, torch.float32, KVFormat(int8_keys=True, int8_values=True))
    config = EngineConfig(small, cache_bytes=sum(kept) + kept.prompt)
    with pytest.raises(ConfigError, match="0 would fit"):
        build_generator(model, config)
    generator = build_generator(model, replace(config, backends=replace(EAGER, keys="int8", values="int8")))
    planes = generator.cache.windows.planes.values()
    assert sum(plane.tensor.nbytes for plane in planes) == kept.window


def test_a_decoders_cache_counts_only_where_it_is(model: Model, small: StreamConfig) -> None:
    without = room_for(model, small, 1, decodes=False)
    build_generator(model, EngineConfig(small, decodes=False, cache_bytes=without))
    for config in (
        EngineConfig(small, cache_bytes=without),
        EngineConfig(small, decodes=False, decoder_beside=True, cache_bytes=without),
    ):
        with pytest.raises(ConfigError, match="0 would fit"):
            build_generator(model, config)

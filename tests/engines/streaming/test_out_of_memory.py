"""A device that has no memory left refuses one call, which can be made again; nothing stays taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.errors import DeviceOutOfMemory
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from tests.support.rollouts import roll


@contextmanager
def full(owner: Any, name: str, after: int = 0) -> Iterator[None]:
    """Within it a function finds no memory, from its call number `after` on."""
    calls = iter(range(1 << 30))
    whole = getattr(owner, name)

    def fail(*args: Any, **options: Any) -> Any:
        if next(calls) >= after:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return whole(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


def free(generator: Generator) -> tuple[int, int, int]:
    cache = generator.cache
    return cache.windows.free, cache.raw.free, cache.prompts.pool.free


@pytest.mark.parametrize("after", [0, 2])
def test_a_block_can_be_made_again(
    generator: Generator, model: Model, small: StreamConfig, prompts: list[Prompt], after: int
) -> None:
    switches = {0: prompts[0], 2: prompts[1]}
    wanted = roll(generator, generator.open(small), 3, switches)
    stream = generator.open(small)
    roll(generator, stream, 2, switches)
    generator.set_prompt(stream, prompts[1])
    before = free(generator)
    with full(model.transformer, "denoise", after), pytest.raises(DeviceOutOfMemory, match="for a block"):
        generator.generate([stream])
    assert free(generator) == before
    assert torch.equal(generator.generate([stream])[0].latents, wanted[6:])


@pytest.mark.parametrize(
    ("network", "call"),
    [
        ("write_kv", lambda generator, stream, prompts: generator.write_context([stream])),
        ("prompt_kv", lambda generator, stream, prompts: generator.set_prompt(stream, prompts[1])),
    ],
    ids=["clean pass", "prompt"],
)
def test_what_a_block_needs_can_be_made_again(
    generator: Generator, model: Model, small: StreamConfig, prompts: list[Prompt], network: str,
    call: Callable[[Generator, Stream, list[Prompt]], None],
) -> None:  # fmt: skip
    stream = generator.open(small)
    roll(generator, stream, 1, {0: prompts[0]})
    before = free(generator)
    with full(model.transformer, network), pytest.raises(DeviceOutOfMemory):
        call(generator, stream, prompts)
    assert free(generator) == before
    call(generator, stream, prompts)
    assert generator.generate([stream])[0].number == 1


def test_pictures_can_be_decoded_again(
    generator: Generator, model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    (block,) = generator.generate([stream])
    with full(model.vae, "decode"), pytest.raises(DeviceOutOfMemory, match="the pictures of a block"):
        generator.decode(stream, block)
    assert len(generator.decode(stream, block)) == 9


def test_a_stream_or_a_fork_that_finds_no_memory_takes_nothing(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    before = free(generator)
    with full(generator.cache.raw, "take"), pytest.raises(DeviceOutOfMemory, match="for another stream"):
        generator.open(small)
    with full(generator.cache.raw, "copy"), pytest.raises(DeviceOutOfMemory, match="for another stream"):
        generator.fork(stream)
    assert free(generator) == before

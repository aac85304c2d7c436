"""Streams that gave their room back for a while."""

from __future__ import annotations

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.errors import PoolFull, StreamError
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.streaming.snapshot import restore, take_exact, take_light
from engines.text.prompt import Prompt
from tests.support.generators import generator_for
from tests.support.rollouts import roll_pictures


@pytest.mark.parametrize("blocks", [0, 1, 3, 9])
def test_a_resumed_stream_goes_on_as_one_that_is_rebuilt(
    generator: Generator, small: StreamConfig, prompts: list[Prompt], blocks: int
) -> None:
    stream, switches = generator.open(small), {0: prompts[0], 2: prompts[1], 7: prompts[2]}
    if blocks:
        roll_pictures(generator, stream, blocks, switches)
    rebuilt = generator.fork(stream)
    generator.rebuild(rebuilt)
    generator.suspend(stream)
    generator.resume(stream)
    assert stream.rebuilt_before == rebuilt.rebuilt_before
    films = [roll_pictures(generator, one, 4, switches) for one in (stream, rebuilt)]
    assert all(torch.equal(a, b) for a, b in zip(*films, strict=True))


def test_another_stream_has_the_room_of_one_that_is_suspended(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    room_for_one = generator_for(model, sessions=1, config=small)
    stream = room_for_one.open(small)
    roll_pictures(room_for_one, stream, 3, {0: prompts[0]})
    room_for_one.suspend(stream)
    other = room_for_one.open(small)
    roll_pictures(room_for_one, other, 3, {0: prompts[1]})
    with pytest.raises(PoolFull):
        room_for_one.resume(stream)
    assert stream.is_suspended
    room_for_one.close(other)
    room_for_one.resume(stream)
    roll_pictures(room_for_one, stream, 1, {})


def test_a_suspended_stream_is_saved_and_opened_elsewhere_without_any_room(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    room_for_one, there = (generator_for(model, sessions=1, config=small) for _ in range(2))
    stream = room_for_one.open(small)
    roll_pictures(room_for_one, stream, 3, {0: prompts[0]})
    room_for_one.suspend(stream)
    taken = there.open(small)
    copy = restore(there, take_light(room_for_one, stream), suspended=True).stream
    assert (copy.is_suspended, copy.blocks) == (True, 3)
    there.close(taken)
    films = []
    for generator, one in ((room_for_one, stream), (there, copy)):
        generator.resume(one)
        films.append(roll_pictures(generator, one, 2, {}))
    assert all(torch.equal(a, b) for a, b in zip(*films, strict=True))


def test_a_suspended_stream_does_nothing_and_can_be_closed(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    roll_pictures(generator, stream, 1, {0: prompts[0]})
    with pytest.raises(StreamError, match="the stream is not suspended"):
        generator.resume(stream)
    generator.suspend(stream)
    for attempt in (
        lambda: generator.generate([stream]),
        lambda: generator.set_prompt(stream, prompts[1]),
        lambda: generator.fork(stream),
        lambda: generator.suspend(stream),
        lambda: take_exact(generator, stream),
    ):
        with pytest.raises(StreamError, match="the stream is suspended before block 1; resume it first"):
            attempt()
    generator.close(stream)
    assert stream.closed

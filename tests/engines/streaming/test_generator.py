from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engines.config.stream import StreamConfig
from engines.device.side_stream import Begun, SideStream
from engines.errors import Cancelled, ConfigError, PoolFull, PositionLimit, PromptError, StreamError
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.streaming.snapshot import light_parts
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from tests.support.generators import denoiser_for, generator_for
from tests.support.rollouts import roll, roll_pictures

T = TypeVar("T")


def test_a_stream_is_bit_equal_alone_and_among_others(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    switches = {0: prompts[0], 5: prompts[1]}
    alone = roll(generator, generator.open(small), 9, switches)
    busy = generator.open(small)
    others: list[Stream] = []
    made: list[Tensor] = []
    for number in range(9):
        if number in switches:
            generator.set_prompt(busy, switches[number])
        if number < 3:
            others.append(generator.open(replace(small, seed=90 + number, steps=(1000, 400))))
            generator.set_prompt(others[-1], prompts[number])
        if number == 6:
            generator.set_prompt(others[0], prompts[2])
            generator.close(others.pop())
        made.append(generator.generate([*others, busy])[-1].latents)
    assert torch.equal(torch.cat(made), alone)


def test_streams_of_one_batch_differ_from_lone_ones_by_rounding_alone(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    configs = [replace(small, seed=seed) for seed in range(3)]
    alone = [
        roll(generator, generator.open(config), 7, {0: prompts[i], 3: prompts[0]})
        for i, config in enumerate(configs)
    ]
    batching = denoiser_for(model.transformer, batch=4)
    streams = [batching.open(config) for config in configs]
    roll(batching, streams[2], 2, {0: prompts[2]})
    roll(batching, streams[1], 1, {0: prompts[1]})
    batching.set_prompt(streams[0], prompts[0])
    made: list[list[Tensor]] = [[], [], []]
    for _ in range(5):
        for stream in streams:
            if stream.blocks == 3:
                batching.set_prompt(stream, prompts[0])
        for row, block in enumerate(batching.generate(streams)):
            made[row].append(block.latents)
    for row, skipped in enumerate((0, 3, 6)):
        together = torch.cat(made[row])
        torch.testing.assert_close(together, alone[row][skipped : skipped + 15], atol=2e-4, rtol=0)


def test_the_seed_decides_the_latents(generator: Generator, small: StreamConfig, prompts: list[Prompt]) -> None:
    first, same, other = (
        roll(generator, generator.open(replace(small, seed=seed)), 2, {0: prompts[0]}) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, atol=0.1)


def test_a_prompt_switch_changes_the_next_block_and_none_before(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    plain = roll(generator, generator.open(small), 6, {0: prompts[0]})
    switched = roll(generator, generator.open(small), 6, {0: prompts[0], 4: prompts[1]})
    assert torch.equal(switched[:12], plain[:12])
    assert not torch.allclose(switched[12:15], plain[12:15], atol=1e-3)


def test_settling_early_changes_nothing(generator: Generator, small: StreamConfig, prompts: list[Prompt]) -> None:
    lazy = roll(generator, generator.open(small), 6, {0: prompts[0], 3: prompts[1]})
    stream, made = generator.open(small), []
    for number in range(6):
        if number in (0, 3):
            generator.set_prompt(stream, prompts[number // 3])
            generator.write_context([stream])
        made.append(generator.generate([stream])[0].latents)
        generator.write_context([stream])
        generator.write_context([stream])
    assert torch.equal(torch.cat(made), lazy)


class Breaking(Event):
    """An event that is found set when it is asked for the `n`-th time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._left = n

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("block", [0, 2, 5])
def test_a_block_cancelled_at_any_step_comes_out_the_same_when_asked_again(
    generator: Generator, small: StreamConfig, prompts: list[Prompt], step: int, block: int
) -> None:
    expected = roll(generator, generator.open(small), 7, {0: prompts[0], block: prompts[1]})
    stream = generator.open(small)
    made = [roll(generator, stream, block, {0: prompts[0]})] if block else []
    generator.set_prompt(stream, prompts[1])
    with pytest.raises(Cancelled, match=f"before step {step} of 4"):
        generator.generate([stream], Breaking(step))
    assert stream.blocks == block
    made.append(roll(generator, stream, 7 - block, {}))
    assert torch.equal(torch.cat(made), expected)


def test_a_network_that_fails_in_one_stream_advances_none(
    model: Model, generator: Generator, small: StreamConfig, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (generator.open(replace(small, seed=seed)) for seed in (1, 2))
    for stream in (first, second):
        roll(generator, stream, 5, {0: prompts[0]})
        generator.set_prompt(stream, prompts[1])
    wanted = [generator.generate([generator.fork(stream)])[0].latents for stream in (first, second)]
    calls = iter(range(100))
    denoise = model.transformer.denoise

    def failing(*args: Any) -> Tensor:
        if next(calls) == 6:
            raise RuntimeError("out of memory")
        return denoise(*args)

    monkeypatch.setattr(model.transformer, "denoise", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        generator.generate([first, second])
    assert (first.blocks, second.blocks) == (5, 5)
    again = generator.generate([first, second])
    assert all(torch.equal(block.latents, latents) for block, latents in zip(again, wanted, strict=True))


def test_a_decode_that_fails_can_be_repeated(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    _, expected = roll_pictures(generator, generator.open(small), 2, {0: prompts[0]})
    stream = generator.open(small)
    roll_pictures(generator, stream, 1, {0: prompts[0]})
    (block,) = generator.generate([stream])
    with pytest.raises(ValueError, match="latents"):
        generator.decode(stream, Block(1, block.latents[:, :3]))
    assert torch.equal(generator.decode(stream, block), expected[9:])


class Watched(SideStream):
    """A decoder's queue that writes down which functions are called within it."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.calls = Calls()

    def begin(self, work: Callable[[], T], wait_for: torch.cuda.Event | None) -> Begun[T]:
        """Watched."""
        with self.calls:
            return super().begin(work, wait_for)


class Calls(TorchFunctionMode):
    """Within it, `made` receives the name of each function of tensors, and its arguments but for tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[object, ...]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [arg for arg in args if not isinstance(arg, Tensor)]
        self.made.append((getattr(function, "__name__", ""), *plain, *(kwargs or {}).items()))
        return function(*args, **(kwargs or {}))


def test_a_rebuilt_decoder_is_warmed_up_in_its_queue(
    generator: Generator, small: StreamConfig, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, queue = generator.open(small), Watched()
    roll_pictures(generator, stream, 3, {0: prompts[0]})
    monkeypatch.setattr(generator.decoder, "_side_stream", queue)
    generator.rebuild(stream)
    assert any(call[0] == "conv2d" for call in queue.calls.made)


def test_nine_pictures_come_first_and_twelve_for_each_block_after(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    shapes, starts = [], []
    for _ in range(3):
        starts.append(stream.next_frame)
        (block,) = generator.generate([stream])
        shapes.append(generator.decode(stream, block).shape)
    assert shapes == [(9, 32, 48, 3), (12, 32, 48, 3), (12, 32, 48, 3)]
    assert starts == [0, 9, 21]


def test_blocks_are_decoded_in_order_and_once(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    first, second = (generator.generate([stream])[0] for _ in range(2))
    with pytest.raises(StreamError, match="block 1 is not the next to decode; 0 is"):
        generator.decode(stream, second)
    generator.decode(stream, first)
    with pytest.raises(StreamError, match="block 0 is not the next to decode; 1 is"):
        generator.decode(stream, first)


def test_a_fork_goes_on_alike_and_then_by_itself(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    roll_pictures(generator, stream, 5, {0: prompts[0]})
    fork = generator.fork(stream)
    ours, theirs = (roll_pictures(generator, s, 3, {6: prompts[1]}) for s in (stream, fork))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    generator.set_prompt(fork, prompts[2])
    assert stream.prompt is prompts[1]
    assert not torch.equal(roll(generator, stream, 1, {}), roll(generator, fork, 1, {}))


def test_what_a_stream_keeps_does_not_grow_with_the_prompts_it_had(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream, sizes = generator.open(small), []
    for block in range(30):
        roll_pictures(generator, stream, 1, {block: prompts[block % 2]})
        tensors, facts = light_parts(generator, stream)
        sizes.append((len(json.dumps(facts)), len(tensors)))
    early, late = (max(part) for part in (sizes[5:15], sizes[20:]))
    assert (late[0] <= early[0] + 8, late[1]) == (True, early[1])


def test_streams_take_turns_in_the_memory_there_is(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    generator = generator_for(model, sessions=2, config=small)
    first = generator.open(small)
    generator.open(small)
    too_much = r"a session's window needs 72 tokens, .* bytes; of 144 there are 0 left"
    with pytest.raises(PoolFull, match=too_much):
        generator.open(small)
    with pytest.raises(PoolFull, match=too_much):
        generator.fork(first)
    generator.close(first)
    generator.close(first)
    roll(generator, generator.open(small), 1, {0: prompts[0]})


def test_a_closed_stream_is_refused_by_every_verb(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    (block,) = generator.generate([stream])
    generator.close(stream)
    verbs: list[Callable[[], object]] = [
        lambda: generator.set_prompt(stream, prompts[0]),
        lambda: generator.generate([stream]),
        lambda: generator.decode(stream, block),
        lambda: generator.fork(stream),
        lambda: generator.rebuild(stream),
    ]
    for verb in verbs:
        with pytest.raises(StreamError, match="closed after block 0"):
            verb()


def test_a_stream_without_a_prompt_makes_nothing(generator: Generator, small: StreamConfig) -> None:
    with pytest.raises(StreamError, match="no prompt"):
        generator.generate([generator.open(small)])


def test_a_stream_named_twice_is_refused(generator: Generator, small: StreamConfig, prompts: list[Prompt]) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    with pytest.raises(StreamError, match="named twice"):
        generator.generate([stream, stream])


@pytest.mark.parametrize("shape", [(3, 31), (257, 32)], ids=str)
def test_a_prompt_of_another_model_is_refused(
    generator: Generator, small: StreamConfig, prompts: list[Prompt], shape: tuple[int, int]
) -> None:
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    with pytest.raises(PromptError, match="at most 256 rows of 32"):
        generator.set_prompt(stream, Prompt("foreign", torch.ones(shape)))
    assert stream.prompt is prompts[0]


def test_absolute_rope_ends_with_its_table_of_positions(model: Model, prompts: list[Prompt]) -> None:
    generator = denoiser_for(model.transformer)
    config = StreamConfig(height=16, width=16, rope="absolute", steps=(1000,))
    stream = generator.open(config)
    roll(generator, stream, 341, {0: prompts[0]})
    with pytest.raises(PositionLimit, match=r"end at latent frame 1026, beyond the 1024 .* rope='relative'"):
        generator.generate([stream])
    assert stream.blocks == 341


def test_a_generator_without_a_codec_does_not_decode(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    generator = denoiser_for(model.transformer)
    stream = generator.open(small)
    generator.set_prompt(stream, prompts[0])
    (block,) = generator.generate([stream])
    with pytest.raises(StreamError, match="has no VAE"):
        generator.decode(stream, block)


def test_an_empty_batch_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        denoiser_for(model.transformer, batch=0)

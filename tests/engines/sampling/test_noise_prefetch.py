"""Noise drawn one block ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from engines.sampling.noise import Noise, SeededNoise
from engines.sampling.noise_prefetch import NoisePrefetcher

SHAPE = (3, 2)

T = TypeVar("T")


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def ahead(noise: Noise, executor: Executor, dtype: torch.dtype = torch.float32) -> NoisePrefetcher:
    return NoisePrefetcher(noise, lambda block: (2, *SHAPE), dtype, executor, pinned=False)


class Watched(SeededNoise):
    """Notes which blocks are drawn."""

    def __init__(self) -> None:
        super().__init__(seed=3)
        self.drawn: list[tuple[int, int]] = []

    def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        self.drawn.append((block, draw))
        return super().draw(block, draw, shape)


@pytest.mark.parametrize("blocks", [(0, 1, 2), (4, 4, 0, 7)], ids=str)
def test_blocks_come_as_they_are_drawn_one_by_one(executor: Executor, blocks: tuple[int, ...]) -> None:
    noise = ahead(SeededNoise(3), executor, torch.bfloat16)
    for block in blocks:
        one_by_one = [SeededNoise(3).draw(block, draw, SHAPE).bfloat16() for draw in range(2)]
        assert torch.equal(noise.get(block), torch.stack(one_by_one))


class Inline(Executor):
    """Does what it is given at once."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def test_the_next_block_is_drawn_before_it_is_asked_for_and_once() -> None:
    watched, executor = Watched(), Inline()
    noise = ahead(watched, executor)
    noise.get(0)
    assert watched.drawn == [(0, 0), (0, 1), (1, 0), (1, 1)]
    noise.get(1)
    assert watched.drawn[4:] == [(2, 0), (2, 1)]


def test_a_draw_that_failed_is_made_again(executor: Executor) -> None:
    class Failing(Watched):
        def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
            drawn = super().draw(block, draw, shape)
            if len(self.drawn) == 1:
                raise MemoryError("no room")
            return drawn

    noise = ahead(Failing(), executor)
    with pytest.raises(MemoryError, match="no room"):
        noise.get(5)
    assert torch.equal(noise.get(5)[1], SeededNoise(3).draw(5, 1, SHAPE))


def test_a_block_may_be_of_another_shape_than_the_next(executor: Executor) -> None:
    def shape(block: int) -> tuple[int, ...]:
        return (2, 5) if block == 0 else (3, 4)

    noise = NoisePrefetcher(SeededNoise(3), shape, torch.float32, executor, pinned=False)
    assert [noise.get(block).shape for block in range(3)] == [(2, 5), (3, 4), (3, 4)]

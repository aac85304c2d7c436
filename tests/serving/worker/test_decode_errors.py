"""A block that cannot be decoded, wherever in a session it comes: that session ends, and says why."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

import pytest

from engines.streaming.state import Block
from serving.errors import ReplicaDied, SessionFailed
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import LocalDecoder
from serving.pipeline.video_decoder import DecoderStart, VideoDecoder
from serving.replication.register import Ended
from serving.replication.standby import StandbyCopy
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import (
    MANAGER,
    NOON,
    Bench,
    at_work,
    chunks,
    cues,
    one_thread,
    run,
    settled,
    spec,
    start,
    started,
)

PAUSE, RESUME = pb.Command(id="pause", pause=pb.Pause()), pb.Command(id="resume", resume=pb.Resume())


def break_at(bench: Bench, block: int) -> None:
    """No later block, nor this one, can be decoded; those before it can."""
    whole = bench.decoder.decode

    def decode(key: str, number: int, *rest: Any) -> Any:
        if number >= block:
            raise RuntimeError("not foreseen")
        return whole(key, number, *rest)

    bench.decoder.decode = decode  # type: ignore[assignment, method-assign]


async def ends(bench: Bench, name: str, block: int, from_frame: int = 0) -> None:
    """The session ends at a block, its viewer is told so, and nothing of it is left."""
    with pytest.raises(SessionFailed, match=f"delivering block {block}: RuntimeError: not foreseen"):
        await chunks(bench, name, 10_000, from_frame)
    await settled(lambda: (bench.open_runs(), bench.ids, bench.decoder.free) == (0, (), 4))
    top = await bench.register.latest(name)
    assert top is not None
    assert isinstance(top.record, Ended)
    bench.denoiser.check()


async def paused(bench: Bench, pocket: OpenedModel) -> tuple[str, int]:
    """A session that was paused after some blocks, and the next one."""
    name = await started(bench, spec(pocket))
    await chunks(bench, name, 33)
    await bench.denoiser.command(name, PAUSE)
    await settled(lambda: not (bench.session(name).is_busy or bench.session(name).undelivered))
    return name, bench.session(name).logic.next_block


@pytest.mark.parametrize("block", [0, 1, 5])
def test_a_block_that_cannot_be_decoded_ends_its_session(pocket: OpenedModel, block: int) -> None:
    async def fail() -> None:
        async with at_work(pocket) as bench:
            break_at(bench, block)
            await ends(bench, await started(bench, spec(pocket)), block)

    run(fail())


@pytest.mark.parametrize("suspend_after_s", [0.0, 0.1], ids=["paused", "suspended"])
def test_so_does_the_first_one_after_a_pause(pocket: OpenedModel, suspend_after_s: float) -> None:
    async def fail() -> None:
        async with at_work(pocket, suspend_after_s=suspend_after_s) as bench:
            name, block = await paused(bench, pocket)
            await settled(lambda: bench.denoiser.describe(name).suspended == (suspend_after_s > 0))
            break_at(bench, block)
            await bench.denoiser.command(name, RESUME)
            await ends(bench, name, block)

    run(fail())


async def feed(bench: Bench, name: str, copy: StandbyCopy) -> None:
    async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
        async for item in items:
            if item.delta is not None:
                copy.apply(item.delta)


def test_so_does_the_first_one_after_a_takeover(pocket: OpenedModel) -> None:
    async def fail() -> None:
        async with at_work(pocket) as first, at_work(pocket) as second:
            copy = StandbyCopy()
            await first.open(spec(pocket), cues(NOON))
            feeding = asyncio.create_task(feed(first, "one", copy))
            await first.denoiser.command("one", start())
            await chunks(first, "one", 33)
            feeding.cancel()
            resume = copy.resume_state("its replica was lost")
            block = resume.chunks[-1].block + 1
            break_at(second, block)
            await second.open(copy.spec, resume=resume)
            await ends(second, "one", block)

    run(fail())


class Dying(LocalDecoder):
    """Decoders, each of which dies of a block of the session that is `deadly`, with all that are on it."""

    deadly = ""
    deaths = 0

    def __init__(self, decoder: VideoDecoder, executor: Executor) -> None:
        super().__init__(decoder, executor)
        self._opened_on: dict[str, int] = {}

    async def open(self, key: str, start: DecoderStart, *, moves: bool = False) -> None:
        self._opened_on[key] = self.deaths
        await super().open(key, start, moves=moves)

    async def decode(self, key: str, block: Block, traceparent: str | None = None) -> Chunk:
        await asyncio.sleep(0.05)
        if self._opened_on[key] == self.deaths and self.deadly and key.startswith(self.deadly):
            self.deaths += 1
        if self._opened_on[key] != self.deaths:
            raise ReplicaDied("its video decoder died")
        return await super().decode(key, block, traceparent)


def test_a_block_of_which_two_decoders_die_ends_its_session_and_no_other(
    pocket: OpenedModel,
) -> None:
    async def poison() -> None:
        async with at_work(pocket, slots=3) as bench:
            dying = Dying(bench.decoder, one_thread())
            for part in (bench.denoiser, bench.denoiser._delivery, bench.denoiser._factory):
                part._decoder = dying
            names = [await started(bench, spec(pocket, name)) for name in ("one", "two", "three")]
            watching = [asyncio.create_task(chunks(bench, name, 201)) for name in names[1:]]
            await chunks(bench, "one", 33)
            dying.deadly = "one."
            with pytest.raises(SessionFailed, match="two video decoders died of block"):
                await chunks(bench, "one", 10_000)
            for found in await asyncio.gather(*watching):
                assert [unit.frame for chunk in found for unit in chunk.units] == list(range(201))
            assert dying.deaths == 2

    run(poison())

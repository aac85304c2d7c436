"""A denoiser that has too much to do: whom it refuses, and what it says to those who are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from engines.streaming.generator import Generator
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from serving.errors import SlotsFull
from serving.replication.messages import SessionSpec
from serving.weights.loader import OpenedModel
from serving.worker.capacity.capacity import Capacity
from tests.serving.worker.bench import NOON, at_work, chunks, cues, events, run, settled, spec, started


def capacity(pocket: OpenedModel, seconds: float) -> Capacity:
    """Of a replica on which a block of the tests' sessions was measured to take so long."""
    networks = pocket.model.config
    found = Capacity(networks.transformer, networks.stream)
    found.denoising.measured(spec(pocket).stream, seconds)
    return found


def large(what: SessionSpec) -> SessionSpec:
    return replace(what, stream=replace(what.stream, height=96, width=160))


def test_a_session_for_which_there_is_no_time_is_refused_until_another_one_ends(pocket: OpenedModel) -> None:
    async def fill() -> None:
        async with at_work(pocket, slots=4, capacity=capacity(pocket, 0.5)) as bench:
            await bench.open(spec(pocket, "one", fps=16))
            with pytest.raises(SlotsFull, match="no time for 16 frames/s of 32x48: to generate a block"):
                await bench.open(spec(pocket, "two", fps=16))
            await bench.close("one")
            await bench.open(spec(pocket, "two", fps=16))
            assert bench.ids == ("two",)

    run(fill())


def test_it_says_what_it_holds_what_it_could_hold_and_who_came(pocket: OpenedModel) -> None:
    """A block of the model's own size takes a third of the time that it lasts."""

    async def fill() -> None:
        own = large(spec(pocket, fps=16))
        found = Capacity(pocket.model.config.transformer, pocket.model.config.stream)
        found.denoising.measured(own.stream, 0.25)
        async with at_work(pocket, slots=4, capacity=found) as bench:
            assert bench.denoiser.slot_report == (0, 2, 0, 0)
            await bench.open(replace(own, session_id="one"))
            assert bench.denoiser.slot_report == (1, 2, 1, 0)
            await bench.open(replace(own, session_id="two"))
            with pytest.raises(SlotsFull, match="no time"):
                await bench.open(replace(own, session_id="three"))
            assert bench.denoiser.slot_report == (2, 2, 2, 1)
            await bench.close("one")
            assert bench.denoiser.slot_report == (1, 2, 2, 1)

    run(fill())


def test_a_session_that_moves_here_has_not_arrived(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket, slots=1) as bench:
            await bench.denoiser.prepare("a", spec(pocket), epoch=1)
            with pytest.raises(SlotsFull):
                await bench.denoiser.prepare("b", spec(pocket, "two"), epoch=1)
            assert bench.denoiser.slot_report[2:] == (0, 0)
            with pytest.raises(SlotsFull, match="all 1 sessions"):
                await bench.denoiser.prepare("b", spec(pocket, "two"))
            assert bench.denoiser.slot_report[2:] == (0, 1)

    run(move())


def test_of_two_that_come_at_once_one_is_refused(pocket: OpenedModel) -> None:
    async def rush() -> None:
        async with at_work(pocket, slots=4, capacity=capacity(pocket, 0.5)) as bench:
            opens = [bench.open(spec(pocket, name, fps=16)) for name in ("one", "two")]
            answers = await asyncio.gather(*opens, return_exceptions=True)
            assert [isinstance(answer, SlotsFull) for answer in answers] == [False, True]

    run(rush())


def test_a_fork_is_asked_for_time_as_well(pocket: OpenedModel) -> None:
    async def fork() -> None:
        async with at_work(pocket, slots=4, capacity=capacity(pocket, 0.5)) as bench:
            await started(bench, spec(pocket, fps=16))
            with pytest.raises(SlotsFull, match="no time"):
                await bench.fork("one", None)

    run(fork())


def test_a_session_whose_replica_died_is_let_in_all_the_same(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket, slots=4, capacity=capacity(pocket, 0.5)) as bench:
            await bench.open(spec(pocket, "one", fps=16))
            moved = spec(pocket, "two", fps=16)
            assert (await bench.denoiser.prepare("attempt", moved, cues(NOON), epoch=2, owner="gone")).attempt

    run(move())


def test_an_unpaced_session_whose_blocks_take_too_long_is_refused_beside_a_paced_one(pocket: OpenedModel) -> None:
    async def open_large() -> None:
        async with at_work(pocket, slots=4, capacity=capacity(pocket, 0.3)) as bench:
            await bench.open(spec(pocket, "one", fps=16))
            with pytest.raises(SlotsFull, match="an unpaced session of 96x160: a block of another one would wait"):
                await bench.open(large(spec(pocket, "two")))
            await bench.open(spec(pocket, "three"))

    run(open_large())


def test_blocks_that_are_made_correct_what_was_measured(pocket: OpenedModel) -> None:
    async def learn() -> None:
        async with at_work(pocket, slots=4, capacity=capacity(pocket, 20.0)) as bench:
            await started(bench, spec(pocket, "one"))
            with pytest.raises(SlotsFull, match="no time"):
                await bench.open(spec(pocket, "two", fps=1))
            await chunks(bench, "one", 9 + 12 * 12)
            await bench.open(spec(pocket, "two", fps=1))

    run(learn())


def test_blocks_that_take_longer_than_was_estimated_count_from_the_first_on(pocket: OpenedModel) -> None:
    async def learn() -> None:
        found = capacity(pocket, 1e-6)
        async with at_work(pocket, slots=4, capacity=found) as bench:
            await started(bench, large(spec(pocket, "one")))
            await chunks(bench, "one", 21)
            assert found.denoising.expect(bench.session("one").config, asyncio.get_running_loop().time()) > 1e-3

    run(learn())


class Held(Generator):
    """A generator whose blocks take so long more."""

    held_s = 0.0

    def generate(self, streams: Sequence[Stream], cancelled: object = None) -> list[Block]:
        time.sleep(self.held_s)
        return super().generate(streams)


def test_a_session_that_gets_slow_is_told_the_pace_that_is_held_and_when_its_own_is_again(
    pocket: OpenedModel,
) -> None:
    async def slow_down() -> None:
        async with at_work(pocket) as bench:
            bench.generator.__class__ = Held
            Held.held_s = 0.8
            name = await started(bench, spec(pocket, fps=30))
            seen = await events(bench, name, lambda event: event.HasField("slowed"))
            told = seen[-1].slowed
            assert 0 < told.held_fps < 28.5
            assert "too much to do for 30 frames/s: a block takes" in told.reason
            assert bench.denoiser.describe(name).held_fps == told.held_fps
            Held.held_s = 0.0
            seen = await events(bench, name, lambda event: event.slowed.held_fps == 30, None)
            assert seen[-1].slowed.reason == "the session is made at its 30 frames/s again"
            assert bench.denoiser.describe(name).held_fps == 0

    run(slow_down())


def test_a_pass_that_takes_as_long_as_its_size_does_is_no_dead_one(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait() -> None:
        async with at_work(pocket, capacity=capacity(pocket, 46.0)) as bench:
            await chunks(bench, await started(bench, spec(pocket)), 21)
            bench.generator.__class__ = Held
            Held.held_s = 1.0
            await settled(lambda: bench.session("one").making is not None)
            watch, now = bench.denoiser._watch, time.monotonic()
            monkeypatch.setattr(watch, "_clock", lambda: now + 200)
            bench.denoiser.check()
            monkeypatch.setattr(watch, "_clock", lambda: now + 1000)
            with pytest.raises(RuntimeError, match="a pass has not come back for"):
                bench.denoiser.check()
            monkeypatch.undo()
            Held.held_s = 0.0

    run(wait())

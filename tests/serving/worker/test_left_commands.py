"""Commands whose callers go away before they are answered: all of what they do is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Event
from typing import Any

import pytest

from serving.errors import SessionFailed
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import MANAGER, NIGHT, Bench, at_work, chunks, events, run, settled, spec, started

PAUSE, RESET = pb.Command(id="pause", pause=pb.Pause()), pb.Command(id="reset", reset=pb.Reset())
CUE = pb.Command(schedule_prompt=pb.Cue(frame=0, prompts=[pb.WeightedPrompt(text=NIGHT)]))


class Held:
    """Holds up a call, in whatever thread, until it is let go."""

    def __init__(self, owner: Any, method: str) -> None:
        self._whole = getattr(owner, method)
        self.begun, self.goes_on = Event(), Event()
        setattr(owner, method, self._call)

    def _call(self, *arguments: Any) -> Any:
        self.begun.set()
        self.goes_on.wait(30)
        return self._whole(*arguments)


async def left(answer: Awaitable[pb.Receipt], when: Callable[[], bool]) -> None:
    """A command's caller goes away."""
    calling = asyncio.ensure_future(answer)
    await settled(when)
    calling.cancel()
    with suppress(asyncio.CancelledError):
        await calling


@pytest.mark.parametrize("place", ["engine", "decoder"])
def test_a_reset_whose_caller_goes_away_is_whole(pocket: OpenedModel, place: str) -> None:
    async def reset(bench: Bench) -> None:
        name = await started(bench, spec(pocket))
        await chunks(bench, name, 57)
        held = Held(bench.denoiser._engine if place == "engine" else bench.decoder, "open")
        await left(bench.denoiser.command(name, RESET), held.begun.is_set)
        held.goes_on.set()
        for command in (CUE, pb.Command(start=pb.Start())):
            await bench.denoiser.command(name, command)
        seen = [event.take for event in await events(bench, name, lambda event: event.HasField("chunk"))]
        assert set(seen) == {1}
        assert [chunk.first_frame for chunk in await chunks(bench, name, 33)] == [0, 9, 21]
        assert bench.decoder.keys == (bench.session(name).decoder_key,)
        await bench.close(name)
        await settled(lambda: (bench.decoder.keys, bench.open_runs()) == ((), 0))

    async def go() -> None:
        async with at_work(pocket) as bench:
            await reset(bench)

    run(go())


def test_a_pause_whose_caller_goes_away_is_told_to_the_viewers(pocket: OpenedModel) -> None:
    async def pause(bench: Bench) -> None:
        name = await started(bench, spec(pocket))
        feed = bench.denoiser.feed(name, MANAGER)
        await anext(feed)
        watching = asyncio.create_task(
            events(bench, name, lambda event: event.state.state == pb.SESSION_STATE_PAUSED)
        )
        # Its receipt waits for a standby that acknowledges nothing.
        paused = bench.denoiser.command(name, PAUSE)
        await left(paused, lambda: bench.denoiser.describe(name).state == pb.SESSION_STATE_PAUSED)
        await watching
        await feed.aclose()

    async def go() -> None:
        async with at_work(pocket) as bench:
            await pause(bench)

    run(go())


def test_a_reset_that_fails_half_way_ends_its_session(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("a bug")

    async def fail(bench: Bench) -> None:
        name = await started(bench, spec(pocket))
        watching = asyncio.create_task(events(bench, name, lambda _: False))
        await chunks(bench, name, 33)
        monkeypatch.setattr(bench.denoiser._engine, "open", broken)
        with pytest.raises(SessionFailed, match="RuntimeError: a bug"):
            await bench.denoiser.command(name, RESET)
        with pytest.raises(SessionFailed, match="RuntimeError: a bug"):
            await watching
        await settled(lambda: (bench.ids, bench.decoder.keys, bench.open_runs()) == ((), (), 0))

    async def go() -> None:
        async with at_work(pocket) as bench:
            await fail(bench)

    run(go())

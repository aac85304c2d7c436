"""Sessions that restyle a video on a bench, and who steers them and sends their pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from engines.video.stream import VideoStream
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Role, SessionSpec
from serving.replication.standby import StandbyCopy
from serving.session.pacing import Pace
from serving.weights.loader import OpenedModel
from serving.worker.pictures.session_input import SessionInput
from serving.worker.state.active_session import ActiveSession
from tests.serving.worker.bench import MANAGER, NOON, Bench, at_work, cues, settled, start
from tests.serving.worker.pictures.clips import png

ANNA = "anna's page"


LOOPS = pytest.mark.parametrize("loop", ["plain", "batch"])


def video_spec(pocket: OpenedModel, name: str = "one", seed: int = 7) -> SessionSpec:
    video = pocket.model.config.video
    assert video is not None
    stream = replace(video, seed=seed, height=32, width=48, loop="plain")
    return SessionSpec(name, "anna", "pocket", stream, Pace(), 0.0)


class Controller:
    """Follows a session as the one who steers it."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.events: list[pb.Event] = []

    @property
    def session(self) -> ActiveSession:
        return self.bench.session(self.name)

    @property
    def session_input(self) -> SessionInput:
        """The pictures on their way to the session's blocks."""
        found = self.session.input
        assert found is not None
        return found

    @property
    def stream(self) -> VideoStream:
        found = self.session.stream
        assert isinstance(found, VideoStream)
        return found

    @property
    def noise_scales(self) -> dict[int, float]:
        """Of each block's input, by its number."""
        return {kept.number: kept.input.noise_scale for kept in self.stream.inputs}

    @property
    def chunks(self) -> list[pb.Chunk]:
        return [event.chunk for event in self.events if event.HasField("chunk")]

    @property
    def frames(self) -> int:
        return sum(len(chunk.units) for chunk in self.chunks)

    @property
    def pictures(self) -> list[int]:
        """Of each frame."""
        return [unit.picture for chunk in self.chunks for unit in chunk.units]

    @property
    def encoded(self) -> list[bytes]:
        """Each frame, as it was sent."""
        return [unit.data for chunk in self.chunks for unit in chunk.units]

    @property
    def input(self) -> pb.InputProgress:
        return next(event.progress.input for event in reversed(self.events) if event.HasField("progress"))

    async def command(self, command: pb.Command) -> pb.Receipt:
        """One that is answered."""
        return await self.bench.denoiser.command(self.name, command)

    def send(self, *commands: pb.Command, dropped: int = 0) -> None:
        self.bench.denoiser.take_pictures(self.name, ANNA, commands, dropped)

    def end_input(self) -> None:
        """No more pictures come."""
        self.send(pb.Command(end_input=pb.EndInput()))

    @property
    def applied(self) -> list[pb.AppliedCue]:
        return [event.applied for event in self.events if event.HasField("applied")]

    async def push(self, numbers: Iterable[int], height: int = 96, width: int = 160) -> None:
        """PNG pictures, no faster than they are restyled."""
        for number in numbers:
            self.send(png(number, height, width))
            await self.at_rest()

    async def at_rest(self) -> None:
        """Until nothing is to be done with the pictures that have come, and there is room for a block of them."""
        await settled(lambda: self.session_input.is_at_rest and len(self.session_input._shown) < 5)

    async def read(self) -> None:
        stream = f"controller {self.name} {next(self.bench.streams)}"
        kept_from = self.bench.session(self.name).audience.oldest_frame
        items = self.bench.denoiser.subscribe(self.name, Role.CONTROLLER, kept_from, stream, ANNA)
        async with aclosing(items):
            async for item in items:
                if item.event is not None:
                    self.events.append(pb.Event.FromString(item.event))


@asynccontextmanager
async def controlled(bench: Bench, name: str) -> AsyncIterator[Controller]:
    controller = Controller(bench, name)
    reading = asyncio.create_task(controller.read())
    await settled(lambda: bool(controller.events))
    try:
        yield controller
    finally:
        reading.cancel()


async def begun(bench: Bench, what: SessionSpec, *prompts: str) -> str:
    await bench.open(what, cues(*prompts or (NOON,)))
    await bench.denoiser.command(what.session_id, start())
    return what.session_id


@asynccontextmanager
async def restyling(pocket: OpenedModel, **options: Any) -> AsyncIterator[Controller]:
    """A session that has been started, on a denoiser of its own, and who steers it."""
    async with at_work(pocket, **options) as bench:
        name = await begun(bench, video_spec(pocket))
        async with controlled(bench, name) as controller:
            yield controller


@asynccontextmanager
async def standing_by(bench: Bench, name: str) -> AsyncIterator[StandbyCopy]:
    """The copy of a session's standby, which has acknowledged all that it has."""
    copy = StandbyCopy()

    async def follow() -> None:
        async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
            async for item in items:
                if item.delta is not None:
                    copy.apply(item.delta)
                    bench.denoiser.acknowledge(name, item.delta.number)

    following = asyncio.create_task(follow())
    try:
        yield copy
    finally:
        following.cancel()


def restyled_cue(**restyling: object) -> pb.Command:
    cue = pb.Cue(prompts=[pb.WeightedPrompt(text=NOON)], restyling=pb.Restyling(**restyling))  # type: ignore[arg-type]
    return pb.Command(id="restyled", schedule_prompt=cue)


CUT = pb.Command(id="cut", cut=pb.Cut())

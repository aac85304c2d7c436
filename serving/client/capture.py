"""A session as its viewer gets it: written to a film as it comes, with the times of everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from serving.client.aio import AsyncClient
from serving.client.interactive import InteractiveSession
from serving.errors import FrameOutOfRange, SessionError, SessionNotFound
from serving.media.film_file import FilmFacts, FilmFile, Made
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import read_chunk
from serving.timeline.cue import Cue

Report = Callable[[pb.Event], None]


class Arrival(NamedTuple):
    """A chunk, from `first_frame` to before `end_frame`, and when it was there, in seconds of the event loop."""

    first_frame: int
    end_frame: int
    at: float


class Shown(NamedTuple):
    """When a chunk came on screen, and how long the one before it had to stay there for want of it, in seconds."""

    first_frame: int
    at: float
    waited: float


class Switch(NamedTuple):
    """A prompt that was said at `said_at`, in seconds of the event loop, and the frame that it was to apply at."""

    prompt: str
    said_at: float
    frame: int


def shown(arrivals: Iterable[Arrival], fps: int) -> list[Shown]:
    """What a player at `fps` shows when: it starts with the first chunk, and waits for one that is late."""
    times: list[Shown] = []
    due: float | None = None
    for arrival in arrivals:
        at = arrival.at if due is None else max(due, arrival.at)
        times.append(Shown(arrival.first_frame, at, at - (at if due is None else due)))
        due = at + (arrival.end_frame - arrival.first_frame) / fps
    return times


def time_of(frame: int, times: Iterable[Arrival | Shown]) -> float:
    """When the chunk that begins with `frame` came, or came on screen. Raises SessionNotFound if it never did."""
    for time in times:
        if time.first_frame == frame:
            return time.at
    raise SessionNotFound(f"no chunk that begins with frame {frame} was sent")


class Playback:
    """Writes the chunks of a session, from frame 0 on, to a file, as they are."""

    def __init__(self, controller: InteractiveSession, path: Path, facts: FilmFacts | None = None) -> None:
        options = controller.session.options
        self._controller = controller
        self._film = FilmFile(path, options.height, options.width, facts)
        self.arrivals: list[Arrival] = []
        self.applied: list[pb.AppliedCue] = []
        self.generated_fps: list[float] = []

    @property
    def frames(self) -> int:
        """How many have been written."""
        return self._film.frames

    async def until(self, end_frame: int, report: Report | None = None) -> None:
        """Take events, until the frames before `end_frame` are there.

        Raises FilmError for a frame that comes twice or cannot be written, and SessionError where the session is
        lost, or frames of it are missing.
        """
        while self.frames < end_frame:
            try:
                event = await anext(self._controller)
            except StopAsyncIteration:
                raise SessionNotFound(f"the session ended with frame {self.frames - 1}") from None
            self._note(event)
            if report is not None:
                report(event)

    def close(self, *, complete: bool = False) -> Made:
        """Finish the film; without a frame in it, leave what was there before."""
        return self._film.close(complete=complete)

    def _note(self, event: pb.Event) -> None:
        match event.WhichOneof("event"):
            case "chunk":
                chunk = read_chunk(event.chunk)
                now = asyncio.get_running_loop().time()
                self.arrivals.append(Arrival(chunk.first_frame, chunk.end_frame, now))
                self._film.append(chunk)
            case "applied":
                self.applied.append(event.applied)
            case "progress":
                self.generated_fps.append(event.progress.generated_fps)
            case "gap":
                first, last = event.gap.first_frame, event.gap.first_frame + event.gap.frames - 1
                raise FrameOutOfRange(f"the frames {first} to {last} were not kept for this viewer")


async def steer(
    controller: InteractiveSession, playback: Playback, prompts: Iterable[str], span: int,
    report: Report | None = None,
) -> tuple[Switch, ...]:  # fmt: skip
    """Say at least one prompt, each `span` frames after the one before; ends as long after the last applied."""
    switches: list[Switch] = []
    for prompt in prompts:
        await playback.until(playback.frames + span, report)
        said_at = asyncio.get_running_loop().time()
        switches.append(Switch(prompt, said_at, (await controller.schedule(prompt)).frame))
    await playback.until(switches[-1].frame + span, report)
    return tuple(switches)


@asynccontextmanager
async def opened(client: AsyncClient, cues: Sequence[Cue], **options: Any) -> AsyncIterator[pb.Session]:
    """A session that ends with the block. One that cannot be told so ends with its lease."""
    session = await client.create(cues=cues, **options)
    try:
        yield session
    finally:
        with contextlib.suppress(SessionError):
            await client.delete(session.id)

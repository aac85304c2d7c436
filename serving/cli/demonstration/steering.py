"""The first act of the demonstration: two sessions at once, one steered live, the other by its timeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import av
import torch

from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.client.capture import Playback, Switch, opened, shown, steer, time_of
from serving.client.interactive import InteractiveSession
from serving.errors import FilmError
from serving.media.contact_sheet import Still
from serving.timeline.cue import Blend, Cue, Transition

STEERED = (
    "a red lantern hovering over the desert at night in heavy rain",
    "a red lantern hovering over the desert at dusk under a clear sky",
    "a red lantern hovering over the desert at noon under a clear sky",
    "a green lantern hovering over the desert at noon in falling snow",
)
"""The first is there from the beginning, and each of the others is said live."""

SAILBOAT = "a white sailboat drifting over the sea"
STILLS = 12
"""Pictures of each film on the sheet."""


@dataclass(frozen=True)
class Watched:
    """A session as its viewer had it."""

    name: str
    film: Path
    playback: Playback
    switches: Sequence[Switch] = ()

    def report(self) -> list[str]:
        """In lines for a terminal."""
        arrivals = self.playback.arrivals
        times = shown(arrivals, FRAMES_PER_SECOND)
        seconds = times[-1].at - times[0].at
        late = sum(time.waited > 0 for time in times)
        made = sorted(self.playback.generated_fps)
        lines = [
            f"{self.name}: {self.film}",
            f"  {self.playback.frames} frames, none missing and none twice",
            f"  {arrivals[-1].first_frame / seconds:.1f} delivered frames/s of {FRAMES_PER_SECOND}; "
            f"blocks were made at {made[len(made) // 2]:.0f} frames/s; {late} of {len(times)} came late",
        ]
        for switch in self.switches:
            there = time_of(switch.frame, arrivals) - switch.said_at
            seen = time_of(switch.frame, times) - switch.said_at
            lines.append(
                f"  frame {switch.frame}: {there:.2f} s to be there, {seen:.2f} s to be seen: {switch.prompt}"
            )
        return lines


@asynccontextmanager
async def started(client: AsyncClient, cues: Sequence[Cue], seed: int) -> AsyncIterator[InteractiveSession]:
    """A session that runs at the pace of a player, from its first frame on."""
    async with (
        opened(client, cues, seed=seed, fps=FRAMES_PER_SECOND) as session,
        client.control(session, from_frame=0) as controller,
    ):
        await controller.start()
        yield controller


async def direct(client: AsyncClient, film: Path, span: int) -> Watched:
    """Say one prompt after the other, each after `span` frames of the one before."""
    async with started(client, [Cue(0, Blend.of(STEERED[0]))], seed=42) as controller:
        with closing(Playback(controller, film)) as playback:
            switches = await steer(controller, playback, STEERED[1:], span)
    return Watched("steered live", film, playback, switches)


async def follow(client: AsyncClient, film: Path, span: int) -> Watched:
    """Leave all to the timeline, which is there from the beginning."""
    cues = [
        Cue(0, Blend.of(f"{SAILBOAT} at night under a clear sky")),
        Cue(2 * span, Blend.of(f"{SAILBOAT} at dawn under a clear sky"), Transition(4, "slerp")),
    ]
    async with started(client, cues, seed=7) as controller:
        with closing(Playback(controller, film)) as playback:
            await playback.until(4 * span)
    return Watched("by its timeline", film, playback)


async def both(server: str, folder: Path, span: int) -> tuple[Watched, Watched]:
    """Two sessions at once."""
    try:
        async with AsyncClient(server) as client, asyncio.TaskGroup() as group:
            first = group.create_task(direct(client, folder / "demo.mp4", span))
            second = group.create_task(follow(client, folder / "demo-timeline.mp4", span))
    except ExceptionGroup as problems:
        raise problems.exceptions[0] from None
    return first.result(), second.result()


def stills(watched: Watched) -> list[Still]:
    """Pictures of a film with what was to be seen. Raises FilmError if a frame cannot be decoded."""
    playback = watched.playback
    wanted = {number * playback.frames // STILLS for number in range(STILLS)}
    found, decoded = [], 0
    with av.open(str(watched.film)) as container:
        for frame, picture in enumerate(container.decode(video=0)):
            decoded = frame + 1
            if frame in wanted:
                found.append(
                    Still(frame, _prompt(playback, frame), torch.from_numpy(picture.to_ndarray(format="rgb24")))
                )
    if decoded != playback.frames:
        raise FilmError(f"{watched.film} has {playback.frames} frames, of which {decoded} can be decoded")
    return found


def _prompt(playback: Playback, frame: int) -> str:
    applied = [cue for cue in playback.applied if cue.frame <= frame]
    if not applied:
        raise FilmError(f"no prompt was applied before frame {frame}")
    return applied[-1].cue.prompts[0].text

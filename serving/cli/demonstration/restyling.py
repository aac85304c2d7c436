"""The second act of the demonstration: a film of the first one goes in as from a camera, and is restyled live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import torch
from torch import Tensor

from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.client.camera import clip_pictures, pushing
from serving.client.capture import Playback, Switch, opened, steer
from serving.media.contact_sheet import Still
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

BOAT = "a white sailboat drifting over the sea"
LOOKS = (f"{BOAT} at dusk under a clear sky", f"{BOAT} at night in heavy rain")
"""The first is there from the beginning, and the other is said live."""

COLUMNS = 4


@dataclass(frozen=True)
class Restyled:
    """A clip, what has come of it, and of which picture of the clip each frame was made."""

    clip: Path
    film: Path
    playback: Playback
    switches: Sequence[Switch]
    pictures: Sequence[int]
    input: pb.InputProgress

    def report(self) -> list[str]:
        """In lines for a terminal."""
        playback = self.playback
        seconds = playback.arrivals[-1].at - playback.arrivals[0].at
        rate = (playback.frames - len_of(playback)) / seconds
        lines = [
            f"restyled live: {self.film}, made of {self.clip}",
            f"  {playback.frames} frames, none missing and none twice; {rate:.1f} delivered frames/s of "
            f"{FRAMES_PER_SECOND}; {self.input.dropped} of {self.input.received} pictures were dropped",
        ]
        for switch in self.switches:
            lines.append(f"  frame {switch.frame}: {switch.prompt}")
        return lines


def len_of(playback: Playback) -> int:
    """Frames of the first chunk, with which the time begins."""
    first = playback.arrivals[0]
    return first.end_frame - first.first_frame


async def restyle(server: str, clip: Path, film: Path, span: int) -> Restyled:
    """Push the clip at its own pace, and say the second look after `span` frames."""
    pictures, progress = list[int](), pb.InputProgress()

    def note(event: pb.Event) -> None:
        if event.HasField("chunk"):
            pictures.extend(unit.picture for unit in event.chunk.units)
        elif event.HasField("progress"):
            progress.CopyFrom(event.progress.input)

    async with (
        AsyncClient(server) as client,
        opened(client, [Cue(0, Blend.of(LOOKS[0]))], seed=42, restyles=True) as session,
        client.control(session, from_frame=0) as controller,
    ):
        size = session.options.height, session.options.width
        with closing(Playback(controller, film)) as playback:
            await controller.start()
            async with pushing(controller, chain.from_iterable(clip_pictures(clip, *size) for _ in range(2))):
                switches = await steer(controller, playback, LOOKS[1:], span, note)
    return Restyled(clip, film, playback, switches, pictures, progress)


def pairs(restyled: Restyled, rows: int) -> Iterator[Still]:
    """So many rows of frames, each under the picture that it was made of."""
    given, made = _frames(restyled.clip), _frames(restyled.film)
    shown = [number * len(made) // (COLUMNS * rows) for number in range(COLUMNS * rows)]
    for row in range(rows):
        frames = shown[COLUMNS * row : COLUMNS * (row + 1)]
        for frame in frames:
            picture = restyled.pictures[frame] % len(given)
            yield Still(picture, "what the camera sees", given[picture])
        for frame in frames:
            yield Still(frame, _look(restyled, frame), made[frame])


def _look(restyled: Restyled, frame: int) -> str:
    return LOOKS[sum(switch.frame <= frame for switch in restyled.switches)]


def _frames(film: Path) -> list[Tensor]:
    with av.open(str(film)) as container:
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]

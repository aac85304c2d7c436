"""`longtake play`: a timeline played by a running server, and kept as a film."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from serving.cli.options import add_server_arguments, client_of, seconds, size
from serving.cli.terminal import show_line
from serving.client.capture import Playback, opened
from serving.errors import FilmError
from serving.offline.request import with_length
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.formats.reader import read_timeline
from serving.timeline.schedule import schedule
from serving.timeline.timeline import Settings, Timeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake play`."""
    parser.add_argument("timeline", type=Path, help="in any format that `longtake generate` reads")
    parser.add_argument("-o", "--output", type=Path, default=Path("film.mp4"), help="(default: film.mp4)")
    parser.add_argument("--model", help="else the timeline's, else the server's")
    parser.add_argument("--seed", type=int, help="else the timeline's, else a random one")
    parser.add_argument("--size", type=size, metavar="HEIGHTxWIDTH", help="such as 480x832; multiples of 16")
    parser.add_argument(
        "--seconds", type=seconds, help="length; else the timeline's, else 10 s after its last cue"
    )
    parser.add_argument(
        "--fps", type=int, default=0, help="frames a second to be sent; 0, the default, is all it can"
    )
    add_server_arguments(parser)


@dataclass(frozen=True)
class Playing:
    """What is to be played, and where to. `frames` are whole blocks."""

    timeline: Timeline
    frames: int
    settings: Settings
    fps: int
    output: Path


def run(options: argparse.Namespace) -> int:
    """Play the timeline. Ctrl-C finishes the file and ends the session."""
    playing = _read(options)
    frames = asyncio.run(_play(options, playing))
    print(f"\n{playing.output}: {frames} frames, none missing and none twice", file=sys.stderr)
    return 0


def _read(options: argparse.Namespace) -> Playing:
    """What the options and the timeline ask for; says what is not done as asked."""
    read = read_timeline(options.timeline)
    timeline = with_length(read.timeline, options.seconds)
    planned = schedule(timeline)
    for warning in (*read.warnings, *planned.warnings, *_ignored(timeline.settings)):
        print(f"warning: {warning}", file=sys.stderr)
    _require_film(options.output)
    asked = timeline.settings
    height, width = options.size or (asked.height, asked.width)
    seed = asked.seed if options.seed is None else options.seed
    settings = Settings(seed, height, width, options.model or asked.model)
    return Playing(timeline, planned.frames or 0, settings, options.fps, options.output)


def _ignored(settings: Settings) -> list[str]:
    return [] if settings.steps is None else ["a server takes the steps of its model, not the timeline's"]


def _require_film(path: Path) -> None:
    if path.suffix != ".mp4":
        raise FilmError(f"{path} does not end in .mp4, the only kind of film that is made")
    if not path.parent.is_dir():
        raise FilmError(f"{path.parent} is not a folder; make it first")


async def _play(options: argparse.Namespace, playing: Playing) -> int:
    asked = playing.settings
    async with (
        client_of(options) as client,
        opened(
            client,
            playing.timeline.cues,
            model=asked.model or "",
            seed=asked.seed,
            height=asked.height or 0,
            width=asked.width or 0,
            fps=playing.fps,
        ) as session,
        client.control(session, from_frame=0) as controller,
    ):
        print(f"session {session.id}, seed {session.options.seed}", file=sys.stderr)
        with closing(Playback(controller, playing.output)) as playback:
            await controller.start()
            await playback.until(playing.frames, lambda event: _show(event, playback, playing.frames))
        return playback.frames


def _show(event: pb.Event, playback: Playback, frames: int) -> None:
    if event.HasField("chunk"):
        first, last = playback.arrivals[0], playback.arrivals[-1]
        rate = (last.end_frame - first.end_frame) / max(last.at - first.at, 1e-9)
        show_line(f"frame {playback.frames}/{frames}  {rate if last is not first else 0:.1f} frames/s")
    elif event.HasField("applied"):
        prompt = " + ".join(part.text for part in event.applied.cue.prompts)
        show_line(f"frame {event.applied.frame}: {prompt}")
        if sys.stderr.isatty():
            print(file=sys.stderr)
    elif event.HasField("slowed"):
        show_line(f"{event.slowed.held_fps:.1f} frames/s: {event.slowed.reason}")
    elif event.HasField("resumed"):
        silence = event.resumed.silence.ToTimedelta().total_seconds()
        show_line(f"frame {event.resumed.frame}: the session went on elsewhere after {silence:.1f} s")

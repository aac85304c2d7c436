"""`longtake play`: a timeline played by a running server, and kept as a film."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.cli.interrupts import INTERRUPTED
from serving.cli.options import add_server_arguments, client_of, seconds, size
from serving.cli.sessions import applied_line
from serving.cli.terminal import show_line, tell
from serving.client.capture import Playback, opened
from serving.client.interactive import InteractiveSession
from serving.errors import FilmError, SessionError
from serving.launch.ending_signals import ending_signals
from serving.media.film_file import facts_path, left_behind, require_own_facts
from serving.offline.provenance import Facts
from serving.offline.request import with_length
from serving.offline.session_facts import session_facts
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.formats.reader import read_timeline
from serving.timeline.schedule import Schedule, schedule
from serving.timeline.timeline import Settings, Timeline, unserved


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
    """What is to be played, and where to."""

    timeline: Timeline
    planned: Schedule
    settings: Settings
    fps: int
    output: Path

    @property
    def frames(self) -> int:
        """All that there are to be: whole blocks."""
        return self.planned.frames or 0


def run(options: argparse.Namespace) -> int:
    """Play the timeline. What asks it to end finishes the film with what has come, and ends the session."""
    playing = _read(options)
    try:
        frames = asyncio.run(_play(options, playing))
    except asyncio.CancelledError:
        return INTERRUPTED
    tell("", f"{playing.output}: {frames} frames, none missing and none twice")
    return 0


def _read(options: argparse.Namespace) -> Playing:
    """What the options and the timeline ask for; says what is not done as asked."""
    read = read_timeline(options.timeline)
    timeline = with_length(read.timeline, options.seconds)
    planned = schedule(timeline)
    tell(*read.notes)
    for warning in (*read.warnings, *planned.warnings, *unserved(timeline.settings)):
        tell(f"warning: {warning}")
    _require_film(options.output, options.timeline)
    tell(*(f"warning: {note}" for note in left_behind(options.output)))
    asked = timeline.settings
    height, width = options.size or (asked.height, asked.width)
    seed = asked.seed if options.seed is None else options.seed
    settings = Settings(seed, height, width, options.model or asked.model)
    return Playing(timeline, planned, settings, options.fps, options.output)


def _require_film(path: Path, timeline: Path) -> None:
    if path.suffix != ".mp4":
        raise FilmError(f"{path} does not end in .mp4, the only kind of film that is made")
    if not path.parent.is_dir():
        raise FilmError(f"{path.parent} is not a folder; make it first")
    if facts_path(path).resolve() == timeline.resolve():
        raise FilmError(f"the facts of {path} would be written over {timeline}; choose another -o")
    require_own_facts(path)


async def _play(options: argparse.Namespace, playing: Playing) -> int:
    asked = playing.settings
    with _ended_by_signals():
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
            tell(f"session {session.id}, seed {session.options.seed}")
            return await _record(controller, playing)


async def _record(controller: InteractiveSession, playing: Playing) -> int:
    """Write the film; how many frames it has. Raises FilmError, which says what is kept, if not all comes."""
    facts = _facts(controller.session, playing)
    with closing(Playback(controller, playing.output, facts)) as playback:
        try:
            await controller.start()
            await playback.until(playing.frames, lambda event: _show(event, playback, playing.frames))
        except asyncio.CancelledError:
            tell("", f"interrupted: {_kept(playback, playing.output)}")
            raise
        except SessionError as error:
            raise FilmError(f"{error}; {_kept(playback, playing.output)}") from error
        return playback.close(complete=True).frames


def _kept(playback: Playback, output: Path) -> str:
    """Finish the film with what has come; what that is."""
    frames = playback.close().frames
    return f"{output} has the first {frames} frames" if frames else "nothing is written"


def _facts(session: pb.Session, playing: Playing) -> Facts | None:
    """What the film is made of, if the server says it."""
    if session.HasField("provenance"):
        return session_facts(session, playing.timeline, playing.planned)
    tell("warning: the server does not say what it makes videos with: the film has no facts")
    return None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What ends a process cancels the task that runs the block, as Ctrl-C does."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    others = [number for number in ending_signals() if number != signal.SIGINT]
    for number in others:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in others:
            loop.remove_signal_handler(number)


def _show(event: pb.Event, playback: Playback, frames: int) -> None:
    if event.HasField("chunk"):
        first, last = playback.arrivals[0], playback.arrivals[-1]
        rate = (last.end_frame - first.end_frame) / max(last.at - first.at, 1e-9)
        show_line(f"frame {playback.frames}/{frames}  {rate if last is not first else 0:.1f} frames/s")
    elif event.HasField("applied"):
        show_line(applied_line(event.applied))
        if sys.stderr.isatty():
            tell("")
    elif event.HasField("slowed"):
        show_line(f"{event.slowed.held_fps:.1f} frames/s: {event.slowed.reason}")
    elif event.HasField("resumed"):
        silence = event.resumed.silence.ToTimedelta().total_seconds()
        show_line(f"frame {event.resumed.frame}: the session went on elsewhere after {silence:.1f} s")

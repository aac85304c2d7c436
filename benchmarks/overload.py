"""What becomes of paced sessions on a server that has too much to do, and of a film beside a busy neighbour.

    python -m benchmarks.overload --seconds 20

One paced session beside up to three unpaced ones; as many paced ones as are let in, of eight that ask; and, while
other programs keep some or all of the cores busy, one paced session and the time that `longtake generate` takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.client.capture import Arrival, Playback, opened, shown
from serving.deployments.server_process import local_server
from serving.errors import SlotsFull
from serving.media.whole_file import write_whole
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

ASKING = 8
LEFT_OUT_S = 3.0
"""At the beginning of a session, while its run-ahead is made."""

LATE_S = 0.02
FILM_S = 8
PROMPT = "a red balloon hovering over rolling hills at noon under a clear sky"


@dataclass(frozen=True)
class Viewed:
    """A session as its viewer had it: frames a second, the part of its blocks that came late, what it was told.

    `longest_wait_s` is how long the picture stood for the latest of them.
    """

    fps: int
    frames_per_second: float
    late: float
    longest_wait_s: float
    told: Sequence[float]


@dataclass(frozen=True)
class Film:
    """How long a film took beside so many programs that each keep a core busy."""

    neighbours: int
    seconds: float


def viewed(fps: int, arrivals: Sequence[Arrival], told: Sequence[float]) -> Viewed:
    """Of what came once the session ran evenly. Raises ValueError where that is less than two chunks."""
    even = [arrival for arrival in arrivals if arrival.at >= arrivals[0].at + LEFT_OUT_S]
    if len(even) < 2:
        raise ValueError(f"{len(even)} chunks came after {LEFT_OUT_S:g} s; look on for longer")
    rate = (even[-1].end_frame - even[0].end_frame) / (even[-1].at - even[0].at)
    waits = [time.waited for time in shown(even, fps)] if fps else [0.0]
    late = sum(wait > LATE_S for wait in waits) / len(waits)
    return Viewed(fps, round(rate, 2), round(late, 3), round(max(waits), 3), told)


async def view(client: AsyncClient, film: Path, fps: int, seconds: float) -> Viewed | str:
    """A session for so long; or why it was refused."""
    told: list[float] = []

    def note(event: pb.Event) -> None:
        if event.HasField("slowed"):
            told.append(round(event.slowed.held_fps, 2))

    try:
        async with (
            opened(client, [Cue(0, Blend.of(PROMPT))], seed=1, fps=fps) as session,
            client.control(session, from_frame=0) as controller,
        ):
            with closing(Playback(controller, film)) as playback:
                await controller.start()
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await playback.until(sys.maxsize, note)
            return viewed(fps, playback.arrivals, told)
    except SlotsFull as refusal:
        return str(refusal)


async def together(server: str, folder: Path, paces: Sequence[int], seconds: float) -> list[Viewed | str]:
    """Sessions of these paces at once."""
    async with AsyncClient(server) as client:
        views = (view(client, folder / f"{n}.mp4", fps, seconds) for n, fps in enumerate(paces))
        return await asyncio.gather(*views)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many programs that each keep a core busy."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def film(folder: Path, neighbours: int) -> Film:
    """Make one beside so many busy programs."""
    timeline = folder / "film.txt"
    timeline.write_text(PROMPT)
    command = [
        *(sys.executable, "-m", "serving.cli.main", "generate", str(timeline), "-o", str(folder / "film.mp4")),
        *("--seconds", str(FILM_S)),
    ]
    with busy(neighbours):
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        return Film(neighbours, round(time.monotonic() - began, 2))


def measure(seconds: float, folder: Path) -> dict[str, Any]:
    """Everything, one after the other."""
    films = [film(folder, neighbours) for neighbours in range(os.cpu_count() or 1)]
    beside, crowded = {}, {}
    with local_server(["--slots", str(ASKING), "--recordings", str(folder)]) as server:
        for unpaced in range(4):
            paces = [FRAMES_PER_SECOND, *[0] * unpaced]
            beside[unpaced] = asyncio.run(together(server.address, folder, paces, seconds))
        for programs in range(1 + (os.cpu_count() or 1)):
            with busy(programs):
                crowded[programs] = asyncio.run(together(server.address, folder, [FRAMES_PER_SECOND], seconds))
        asked = asyncio.run(together(server.address, folder, [FRAMES_PER_SECOND] * ASKING, seconds))
    return {
        "film_s_beside_busy_programs": {film.neighbours: film.seconds for film in films},
        "paced_beside_unpaced": {unpaced: as_json(views) for unpaced, views in beside.items()},
        "paced_beside_busy_programs": {programs: as_json(views) for programs, views in crowded.items()},
        "paced_asking_at_once": as_json(asked),
    }


def as_json(views: Sequence[Viewed | str]) -> list[Any]:
    """As results have them."""
    return [found if isinstance(found, str) else asdict(found) for found in views]


def measure_and_keep(
    measure: Callable[[float, Path], dict[str, Any]], name: str, seconds: float, description: str | None
) -> None:
    """The command line of a benchmark with parts of so many seconds each: measure, print, keep as `name`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each part (default: {seconds:g})")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    load = os.getloadavg()
    with TemporaryDirectory() as folder:
        found = measure(options.seconds, Path(folder))
    print(json.dumps(found, indent=1))
    document = {"machine": asdict(Machine.here(torch.device("cpu"))), "load": load, **found}
    write_whole(options.output / f"{name}.json", json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Measure, print and keep."""
    measure_and_keep(measure, "overload_pocket_cpu", 20, __doc__)


if __name__ == "__main__":
    main()

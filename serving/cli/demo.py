"""The demonstration: a server and two sessions at once, one steered live, then a third that restyles a video.

python -m serving.cli.demo
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.config.geometry import FRAMES_PER_SECOND
from serving.cli.demonstration.restyling import pairs, restyle
from serving.cli.demonstration.steering import both, stills
from serving.cli.interrupts import INTERRUPTED
from serving.cli.terminal import say, tell
from serving.deployments.server_process import local_server
from serving.errors import ServingError
from serving.launch.ending_signals import ending_signals
from serving.media.contact_sheet import write_sheet

SERVE, PAGE = "make serve", "http://127.0.0.1:8000/"
"""How to have the page, and where it is then."""

ROWS = 3
"""Of pairs on the sheet of the second act."""


def run(options: argparse.Namespace) -> None:
    """Show it all. Raises ServingError where anything is not as it must be."""
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    span = round(options.seconds * FRAMES_PER_SECOND)
    tell("starting a server ...")
    with local_server(["--slots", "2", "--recordings", str(folder / "recordings")]) as server:
        tell(f"two sessions at once on {server.address} ...")
        films = asyncio.run(both(server.address, folder, span))
        tell("a film of these, as from a camera, and restyled live ...")
        clip, restyled = films[1].film, folder / "demo-restyled.mp4"
        second_act = asyncio.run(restyle(server.address, clip, restyled, span))
        tell("stopping ...")
    sheet = folder / "demo.png"
    write_sheet(sheet, [still for watched in films for still in stills(watched)])
    restyled_sheet = folder / "demo-restyled.png"
    write_sheet(restyled_sheet, list(pairs(second_act, ROWS)))
    say(*(line for made in (*films, second_act) for line in made.report()))
    say(f"pictures of both: {sheet}")
    say(f"pictures of the camera's, and what came of them below: {restyled_sheet}")
    say(f"to steer one yourself: {SERVE}, then open {PAGE} in a browser")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for what is made (default: out)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each prompt (default: 5)")
    options = parser.parse_args(arguments)
    for number in ending_signals():
        signal.signal(number, signal.default_int_handler)
    try:
        run(options)
    except ServingError as error:
        tell(*f"the demonstration failed: {error}".splitlines())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

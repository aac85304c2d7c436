"""The `longtake` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from engines.config.validation import require
from engines.errors import EngineError
from serving.cli import doctor, evacuate, play, recordings, serve, sessions
from serving.cli.films import generate
from serving.cli.interrupts import INTERRUPTED
from serving.cli.terminal import say, tell
from serving.cli.timeline import explain
from serving.cli.weights import download, plan, quantize
from serving.cli.weights.models import memory_of, model_rows, models_table
from serving.errors import ServingError
from serving.timeline.formats.reader import read_timeline
from serving.weights.catalog import models_folder
from serving.weights.loader import require_model

COMMANDS: tuple[tuple[str, Any, str], ...] = (
    ("generate", generate, "make a film from a timeline, or again from a film"),
    ("serve", serve, "serve interactive sessions on this machine, or in a Ray cluster"),
    ("doctor", doctor, "check whether this host can do what `serve` would ask of it"),
    ("evacuate", evacuate, "have the sessions of a running server go on on another one"),
    ("play", play, "have a running server play a timeline, and keep the film"),
    ("download", download, "download the weights of a model"),
    ("quantize", quantize, "make of a model one in 8 bits"),
    ("plan", plan, "build TensorRT plans of a model's stages"),
)
"""Each a module with `add_arguments` and `run`."""


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what it refuses, and so do the parsers of its commands."""

    @override
    def error(self, message: str) -> NoReturn:
        tell(f"longtake: {message}; see `{self.prog} --help`")
        self.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; 2, with one sentence on standard error, where it is refused.

    Raises SystemExit where it has words that no command takes, or asks for help.
    """
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (ServingError, EngineError) as error:
        tell(f"longtake: {error}")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough of it; Python would try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    longtake = _Parser(prog="longtake", description="Interactive, endless video generation.")
    commands = longtake.add_subparsers(required=True, metavar="COMMAND")
    for name, command, summary in COMMANDS:
        parser_of = commands.add_parser(name, help=summary)
        command.add_arguments(parser_of)
        parser_of.set_defaults(run=command.run)
    sessions.add_commands(
        commands.add_parser("sessions", help="list, watch and stop the sessions of a running server")
    )
    recordings.add_commands(
        commands.add_parser("recordings", help="list, download and delete the recordings of a running server")
    )
    timeline = commands.add_parser("timeline", help="work with timelines").add_subparsers(
        required=True, metavar="COMMAND"
    )
    check = timeline.add_parser("check", help="explain a timeline: what applies when, and what to improve")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check_timeline)
    models = commands.add_parser("models", help="list models: what is here, what they need, under which terms")
    models.add_argument("model", nargs="?", help="say what this one takes of a graphics card, line by line")
    models.add_argument("--models-dir", type=Path)
    models.add_argument("--require", action="store_true", help="fail unless the weights of this one are here")
    models.add_argument(
        "--codec", choices=("own", "tiny"), default="own", help="that are to be here for --require"
    )
    models.set_defaults(run=_list_models)
    return longtake


def _check_timeline(options: argparse.Namespace) -> int:
    say(*explain(read_timeline(options.file)).split("\n"))
    return 0


def _list_models(options: argparse.Namespace) -> int:
    folder = models_folder(options.models_dir)
    if options.require:
        require(options.model is not None, "--require is about one model; name it")
        require_model(options.model, folder, options.codec)
    say(*(memory_of(options.model, folder) if options.model else models_table(model_rows(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The `longtake` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.errors import EngineError
from serving import (
    download_command,
    film_request,
    generate_command,
    play_command,
    serve_command,
    sessions_command,
)
from serving.catalog import models_folder
from serving.errors import ServingError
from serving.models_report import model_rows, models_table
from serving.timeline_files import read_timeline
from serving.timeline_report import explain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; 2, with one sentence on standard error, where it is refused."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (ServingError, EngineError) as error:
        print(f"longtake: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return generate_command.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough of it; Python would try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="longtake", description="Interactive, endless video generation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="make a film from a timeline, or again from a film")
    film_request.add_arguments(generate)
    generate.set_defaults(run=generate_command.run)
    serve = commands.add_parser("serve", help="serve interactive sessions on this machine")
    serve_command.add_arguments(serve)
    serve.set_defaults(run=serve_command.run)
    play = commands.add_parser("play", help="have a running server play a timeline, and keep the film")
    play_command.add_arguments(play)
    play.set_defaults(run=play_command.run)
    sessions = commands.add_parser("sessions", help="list, watch and stop the sessions of a running server")
    sessions_command.add_commands(sessions)
    timeline = commands.add_parser("timeline", help="work with timelines").add_subparsers(required=True)
    check = timeline.add_parser("check", help="explain a timeline: what applies when, and what to improve")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check_timeline)
    download = commands.add_parser("download", help="download the weights of a model")
    download_command.add_arguments(download)
    download.set_defaults(run=download_command.run)
    models = commands.add_parser("models", help="list models: what is here, what they need, under which terms")
    models.add_argument("--models-dir", type=Path)
    models.set_defaults(run=_list_models)
    return parser


def _check_timeline(options: argparse.Namespace) -> int:
    print(explain(read_timeline(options.file)))
    return 0


def _list_models(options: argparse.Namespace) -> int:
    print(models_table(model_rows(models_folder(options.models_dir))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`longtake doctor`: whether this host can do what `longtake serve` would ask of it."""

from __future__ import annotations

import argparse

from serving.cli.terminal import say
from serving.launch.doctor import examine
from serving.launch.settings import SettingsFlags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `longtake serve`."""
    parser.set_defaults(flags=SettingsFlags(parser))


def run(options: argparse.Namespace) -> int:
    """Print a line for each check; 1 if one has failed. Raises ConfigError for settings that cannot be."""
    config, notes = options.flags.read(options)
    for note in notes:
        say(f"{'ok':<8} {'preset':<13} {note}")
    has_failed = False
    for finding in examine(config):
        say(str(finding))
        has_failed |= finding.status == "failed"
    return int(has_failed)

"""What the READMEs tell people to type: commands that can run here do, and of all others the flags are known."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.cli.main import parser
from tests.serving.media.clips.clips import gray, write_clip
from tests.support.readme_commands import FILES, ROOT, commands_of, prose_of

FILM = ("cp ", "longtake timeline ", "longtake generate ")
IN_A_CLUSTER = ("helm ", "kubectl create ", "openssl ")
"""Run by tests/helm/test_readme.py."""

NOT_HERE = {
    "make ": "takes long, and is what CI runs; the target is looked for",
    "docker ": "needs Docker",
    "kubectl get ": "needs KubeRay's operator",
    "kubectl port-forward ": "needs pods",
    "kubectl patch ": "needs KubeRay's operator",
    "kubectl drain ": "needs nodes",
    "cluster=$(kubectl get ": "needs KubeRay's operator",
    "longtake serve": "runs until it is ended, as in all live tests, or needs weights and a GPU",
    "longtake doctor": "finds this machine lacking, or not: has tests of its own",
    "longtake play ": "needs a server on port 9000",
    "longtake sessions ": "needs a server on port 9000",
    "longtake evacuate ": "needs two clusters",
    "longtake download ": "needs the network and 19 GB",
    "longtake quantize ": "needs weights and hours",
    "longtake plan ": "needs weights and TensorRT",
    "longtake generate film.yaml -o film.mp4 --model ": "needs weights and a GPU",
}
"""Commands, by how they begin, and why no test runs them."""

OF_OTHERS = {"--secret": "docker build", "--recipe": "training", "--folder": "training", "--processes": "training"}
"""Flags in the prose that are not of `longtake`."""


def all_commands() -> list[str]:
    return [command for file in FILES for command in commands_of(file)]


def is_run_by(command: str) -> bool:
    """Whether it is one of those that make a film here."""
    return command.startswith((*FILM, "longtake models")) and why_not(command) is None


def why_not(command: str) -> str | None:
    return next((why for begins, why in NOT_HERE.items() if command.startswith(begins)), None)


def longtake_words(command: str) -> list[str] | None:
    """What is said to `longtake`, on this machine or in a container; None where it is not called."""
    found = re.fullmatch(r"(?:docker run .* )?longtake (.*)", command)
    return None if found is None else shlex.split(found[1])


def flags_of(found: argparse.ArgumentParser) -> Iterator[str]:
    """All flags of a parser and of its commands."""
    for action in found._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from flags_of(command)


def test_each_command_of_a_readme_is_run_or_it_is_said_why_not() -> None:
    assert len(all_commands()) > 40
    unknown = [
        command for command in all_commands()
        if not command.startswith(IN_A_CLUSTER) and not is_run_by(command) and why_not(command) is None
    ]  # fmt: skip
    assert unknown == []
    assert [begins for begins in NOT_HERE if not any(found.startswith(begins) for found in all_commands())] == []


@pytest.mark.parametrize("command", [found for found in all_commands() if longtake_words(found)])
def test_a_command_of_a_readme_has_flags_that_are_known(command: str) -> None:
    words = longtake_words(command)
    try:
        parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"no command of that form: {command}")


@pytest.mark.parametrize("file", FILES)
def test_prose_names_no_flag_that_is_unknown(file: str) -> None:
    known = {*flags_of(parser()), *OF_OTHERS}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?![a-z0-9-]*\.)", prose_of(file)))
    assert named - known == set()


@pytest.mark.parametrize("command", [found for found in all_commands() if found.startswith("make ")])
def test_a_target_that_a_readme_names_is_there(command: str) -> None:
    words = ("make", "--dry-run", *command.split()[1:])
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_that_make_films_make_them(tmp_path: Path) -> None:
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    write_clip(tmp_path / "clip.mp4", gray(48), audio_s=2)
    for command in filter(is_run_by, all_commands()):
        done = subprocess.run(
            ("bash", "-c", command), cwd=tmp_path, env=os.environ | {"PATH": path},
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
    made = {"film.mp4", "film.png", "again.mp4", "rest.mp4", "restyled.mp4", "restyled.png"}
    assert made <= {found.name for found in tmp_path.iterdir()}

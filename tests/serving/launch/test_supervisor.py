"""What the command says of a server that has ended."""

from __future__ import annotations

import queue
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from serving.errors import ServerError
from serving.launch import supervisor

SLEEP = shutil.which("sleep") or ""


@contextmanager
def cluster(folder: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """A shell with a child called raylet, in place of the process that holds a cluster."""
    raylet = shutil.copy(SLEEP, folder / "raylet")
    command = ["sh", "-c", f"{raylet} 600 & echo up; {script}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        children = psutil.Process(shell.pid).children()
        yield shell
        for one in children:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        shell.kill()


def said_once(shell: subprocess.Popen[str], end: Callable[[psutil.Process], None]) -> str:
    """What is said of a server whose shell and raylet these are, once it has been ended so."""
    (raylet,) = psutil.Process(shell.pid).children()
    end(raylet)
    with tempfile.TemporaryFile("w+") as output:
        output.write("Failed to register worker to Raylet")
        with pytest.raises(ServerError) as raised:
            supervisor._wait_until_started(shell, {"raylet": raylet}, queue.SimpleQueue(), output)
    return str(raised.value).replace(str(raylet.pid), "RAYLET").replace(str(shell.pid), "SHELL")


@pytest.mark.parametrize("end", ["exit 1", "kill -ABRT $$", "sleep 600"])
def test_a_raylet_that_died_is_named_whether_or_not_it_took_its_client_along(tmp_path: Path, end: str) -> None:
    with cluster(tmp_path, f"wait; {end}") as shell:
        said = said_once(shell, lambda raylet: raylet.kill())
    assert said == "the server did not start: raylet (pid RAYLET) died"


def test_a_client_that_was_killed_is_named_though_its_raylet_went_along(tmp_path: Path) -> None:
    def end(raylet: psutil.Process) -> None:
        shell.kill()
        raylet.kill()

    with cluster(tmp_path, "wait") as shell:
        said = said_once(shell, end)
    assert said.startswith("the server did not start: the process of its cluster (pid SHELL) ended by SIGKILL")


def test_a_client_that_ended_by_itself_is_named_with_its_last_words(tmp_path: Path) -> None:
    with cluster(tmp_path, "read line; exit 3") as shell:
        stdin = shell.stdin
        assert stdin is not None
        said = said_once(shell, lambda _: stdin.close())
    assert said.endswith("(pid SHELL) ended with code 3: Failed to register worker to Raylet")

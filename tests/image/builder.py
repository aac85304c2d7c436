"""Buildah with a store of its own: a base from debootstrap, an image on it, containers to run programs in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.image.package_index import package_index

RELEASE = "bookworm"
PROGRAMS = ("buildah", "debootstrap")
UNTIL_STDIN_ENDS = '"$@" & read -r; kill -TERM $!; wait $!'
"""Of bash. What buildah hands a signal on to is killed outright."""
STOP_S = 60


def why_not() -> str | None:
    """Why no image can be built here; None if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} is not installed: `make .venv/buildah`"
    if os.geteuid() != 0:
        return "the base of an image has files of several users, which only root can make"
    if subprocess.run(("unshare", "--mount", "true"), capture_output=True, check=False).returncode:
        return "mounts are not allowed here"
    return None


class Container:
    """Where programs of an image run, as the image says: its user, its variables, its folders."""

    def __init__(self, builder: Builder, name: str) -> None:
        self._builder, self._name = builder, name
        self.root = Path(builder.run("mount", name))

    def run(self, *command: str) -> str:
        """What a program prints. Raises if it fails."""
        return _output(self._command(*command))

    @contextmanager
    def running(self, *command: str) -> Iterator[IO[str]]:
        """The errors of a program that runs for a while, and is then told to end by SIGTERM."""
        inside = self._command("bash", "-c", UNTIL_STDIN_ENDS, "-", *command)
        with subprocess.Popen(inside, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            try:
                yield process.stderr
            finally:
                process.stdin.close()
                try:
                    process.wait(STOP_S)
                finally:
                    process.kill()

    def _command(self, *command: str) -> list[str]:
        return self._builder.command("run", "--isolation", "chroot", self._name, "--", *command)


class Builder:
    """Images and containers in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def command(self, verb: str, *arguments: str) -> list[str]:
        """Of buildah, on this store."""
        store = ("--root", str(self._folder / "images"), "--runroot", str(self._folder / "run"))
        return ["buildah", *store, "--storage-driver", "vfs", verb, *arguments]

    def run(self, verb: str, *arguments: str) -> str:
        """What buildah prints. Raises if it fails."""
        return _output(self.command(verb, *arguments))

    def make_base(self, name: str) -> None:
        """A minimal Debian, by the name of an image that could be pulled instead."""
        system = self._folder / "debian"
        _output(["debootstrap", "--variant=minbase", RELEASE, str(system)])
        scratch = self.run("from", "scratch")
        self.run("add", "--quiet", scratch, str(system), "/")
        self.run("commit", "--quiet", "--rm", scratch, name)
        shutil.rmtree(system)

    def build(self, context: Path, name: str, **arguments: str) -> None:
        """The image of `context` on a base that is here, with packages from where this machine's pip has them."""
        index = package_index()
        config = self._folder / "pip.conf"
        config.write_text(index.config)
        self.run(
            *(
                "build",
                "--isolation",
                "chroot",
                "--pull-never",
                "--tag",
                name,
                "--secret",
                f"id=pip.conf,src={config}",
            ),
            *(f"--build-arg={argument}={value}" for argument, value in arguments.items()),
            *(f"--volume={here}:{there}:ro" for here, there in index.mounts.items()),
            str(context),
        )

    @contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """A container of an image, for a while."""
        name = self.run("from", "--pull-never", image)
        try:
            yield Container(self, name)
        finally:
            self.run("rm", name)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()

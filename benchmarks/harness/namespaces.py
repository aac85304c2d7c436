"""Hosts that are network namespaces of this one, on one bridge: they share its files and its processes' ids."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

NETWORK = "10.77.0"
BRIDGE = "longtake-br"


def why_not() -> str | None:
    """Why there can be no namespaces here; None if there can."""
    if shutil.which("ip") is None:
        return "the program `ip` is not installed"
    probe = f"longtake-{os.getpid()}"
    made = subprocess.run(("ip", "netns", "add", probe), capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    try:
        for link in ("probe-br type bridge", "probe-a type veth peer name probe-b"):
            added = _try_ip("link", "add", *link.split())
            if added is not None:
                return f"network devices cannot be made here: {added}"
            _ip("link", "del", link.split()[0])
    finally:
        _ip("netns", "del", probe)
    return None


class Host:
    """A namespace with one address, reached over one link."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.address = f"longtake-{name}", f"{NETWORK}.{number}"
        self._link = f"lt-{name}"
        self.started: list[subprocess.Popen[str]] = []
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._link, "master", BRIDGE, "up")
        self._inside("addr", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("link", "set", "eth0", "up")
        self._inside("link", "set", "lo", "up")
        # Programs find the address of their host by the way out of it.
        self._inside("route", "add", "default", "via", f"{NETWORK}.1")

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program on the host; it ends with the host."""
        self.started.append(subprocess.Popen(("ip", "netns", "exec", self.name, *command), text=True, **options))
        return self.started[-1]

    def cut_off(self) -> None:
        """Take its link down, at the bridge: the host itself sees no more of it than that nothing comes."""
        _ip("link", "set", self._link, "nomaster")

    def reconnect(self) -> None:
        """Take the link up."""
        _ip("link", "set", self._link, "master", BRIDGE)

    @property
    def pids(self) -> list[int]:
        """Of the programs that run there."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def close(self) -> None:
        """End what runs there, and the host."""
        while pids := self.pids:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.started:
                process.wait()
            time.sleep(0.1)
        _ip("netns", "del", self.name)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._link)

    def _inside(self, *arguments: str) -> None:
        _ip("-netns", self.name, *arguments)


class Hosts:
    """A bridge that this host is on as well, and the hosts that were added to it."""

    def __init__(self) -> None:
        self.all: dict[str, Host] = {}

    def __enter__(self) -> Self:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.all.values():
            host.close()
        _ip("link", "del", BRIDGE)

    def add(self, name: str) -> Host:
        """One more host."""
        self.all[name] = Host(name, 10 + len(self.all))
        return self.all[name]

    def of(self, pid: int) -> Host:
        """The one on which a program runs."""
        return next(host for host in self.all.values() if pid in host.pids)


def _ip(*arguments: str) -> str:
    return subprocess.run(("ip", *arguments), capture_output=True, text=True, check=True).stdout


def _try_ip(*arguments: str) -> str | None:
    """What went wrong; None if nothing did."""
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()

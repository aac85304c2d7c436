"""Replicas of a server on this machine as processes: to find one by what it logged, and to stop or kill it."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from ray import serve

from serving.deployments.app import APPLICATION


class Replicas:
    """Those that write their logs into a folder. The ones that were stopped go on at the end of the block."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: list[psutil.Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume_all()

    def resume_all(self) -> None:
        """Have those that were stopped go on."""
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def send(self, number: signal.Signals, deployment: str, message: str, session: str) -> None:
        """Send a signal to the replica of a deployment that logged `message` last, of this session or of none."""
        said = [line for line in self._lines(deployment) if line["message"] == message]
        lines = [line for line in said if line.get("session", session) == session]
        self._send(max(lines, key=lambda line: str(line["asctime"]))["process"], number)

    def kill_all(self, deployment: str) -> None:
        """Kill every replica of a deployment."""
        for process in {line["process"] for line in self._lines(deployment)}:
            if psutil.pid_exists(process):
                self._send(process, signal.SIGKILL)

    def _lines(self, deployment: str) -> list[dict[str, Any]]:
        files = self._logs.glob(f"replica_{APPLICATION}_{deployment}_*.log")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def _send(self, process: int, number: signal.Signals) -> None:
        self._processes.append(psutil.Process(process))
        self._processes[-1].send_signal(number)


def wait_until_whole(seconds: float = 60) -> None:
    """Wait until every deployment has all its replicas. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        deployments = serve.status().applications[APPLICATION].deployments.values()
        if all(found.status == "HEALTHY" for found in deployments):
            return
        time.sleep(0.2)
    raise TimeoutError(f"not whole after {seconds:g} s: {serve.status()}")

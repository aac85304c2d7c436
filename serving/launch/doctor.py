"""What `longtake doctor` looks at: whether this host can do what `longtake serve` would ask of it."""

from __future__ import annotations

import csv
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import torch
from packaging.requirements import Requirement
from typing_extensions import override

from engines.device.memory_budget import RESERVE_BYTES
from engines.errors import EngineError
from engines.loading.memory_plan import CONTEXT_BYTES, gigabytes
from serving.config import Listener, ServerConfig
from serving.errors import ServingError
from serving.launch.memory_preset import memory_plan
from serving.launch.startup_checks import (
    check_memory,
    require_cluster,
    require_devices,
    require_encoder,
    require_kernels,
    require_port,
)
from serving.tracing.exporter import check_exporter, endpoint
from serving.weights.catalog import models_folder
from serving.weights.loader import require_model

DISTRIBUTION = "longtake"
SHOWN = ("torch", "ray", "triton", "av")
"""Packages that have a line of their own."""

PROCESS_BYTES = 400_000_000
"""Of a replica, beside its model, or of Ray's own processes of one kind: measured."""

RAY_PROCESSES = 6
SHM_BYTES = 1 << 30
FILES = 8192
"""Which Ray recommends at the least; it raises the soft limit by itself."""

DISK_BYTES = 2_000_000_000
DISK_SHARE = 0.05
"""Of a disk, below which Ray's logs and what it puts aside find no room."""

ANSWER_S = 20.0

Status = Literal["ok", "warning", "failed"]

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One check: how it went, of what, and what was found, with the remedy where it did not go well."""

    status: Status
    name: str
    found: str

    @override
    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<13} {self.found}"


def examine(config: ServerConfig) -> Iterator[Finding]:
    """Look at this host for a server of `config`. Nothing is started, and nothing is left behind."""
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield _driver(config)
    yield _tried("device", _device, config)
    if config.device == "cuda":
        yield _compiler()
    of_model = [_tried("weights", _weights, config)]
    if config.device == "cpu" or torch.cuda.is_available():
        of_model.append(_tried("kernels", _kernels, config))
        if config.device == "cuda":
            of_model.append(_tried("GPU memory", _gpu_memory, config))
    yield from of_model
    yield _tried("encoder", _encoder, config)
    if (where := endpoint()) is not None:
        yield _tried("spans", _spans, where)
    yield _memory(config, with_model=len(of_model) > 1 and all(found.status == "ok" for found in of_model))
    yield _shared_memory()
    yield _files()
    yield from _disks(config)
    yield from _doors(config)


def _tried(name: str, look: Callable[[T], str], subject: T) -> Finding:
    try:
        return Finding("ok", name, look(subject))
    except (EngineError, ServingError, OSError) as error:
        return Finding("failed", name, str(error))


def _packages() -> Iterator[Finding]:
    """Whether what Longtake needs is here, in versions that it was made for."""
    try:
        needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield Finding("failed", "packages", "Longtake is not installed for this Python; run `pip install .` in it")
        return
    here = [found for found in needed if found.marker is None or found.marker.evaluate({"extra": ""})]
    findings = {found.name: package(found) for found in here}
    yield from (finding for name, finding in findings.items() if name in SHOWN or finding.status == "failed")
    fine = sum(finding.status == "ok" for name, finding in findings.items() if name not in SHOWN)
    yield Finding("ok", "packages", f"{fine} others as {DISTRIBUTION} {metadata.version(DISTRIBUTION)} needs them")


def package(needed: Requirement) -> Finding:
    """Whether a package is here in a version that will do."""
    remedy = f"run `pip install '{needed.name}{needed.specifier}'`"
    try:
        version = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return Finding("failed", needed.name, f"not installed; {remedy}")
    if not needed.specifier.contains(version, prereleases=True):
        return Finding("failed", needed.name, f"{version}, where {needed.specifier} is needed; {remedy}")
    return Finding("ok", needed.name, version)


def _driver(config: ServerConfig) -> Finding:
    """Of NVIDIA, which a server on the CPU does without."""
    asked: Status = "failed" if config.device == "cuda" and config.address is None else "ok"
    program = shutil.which("nvidia-smi")
    if program is None:
        remedy = "; install NVIDIA's driver, for containers its toolkit as well" if asked == "failed" else ""
        return Finding(asked, "driver", f"no nvidia-smi on the PATH{remedy}")
    query = (program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("failed", "driver", f"{program} does not answer: {error}; look at `dmesg`")
    if said.returncode != 0:
        words = " ".join((said.stderr or said.stdout).split())
        return Finding(
            "failed", "driver", f"{program} says: {words}; install the driver again, or restart the host"
        )
    cards = [", ".join(cell.strip() for cell in row) for row in csv.reader(said.stdout.splitlines())]
    return Finding("ok", "driver", "; ".join(cards))


def _device(config: ServerConfig) -> str:
    there = torch.cuda.device_count()
    if config.address is not None:
        return f"{config.device} of the cluster's nodes; {there} GPUs here"
    require_devices(config)
    if config.device == "cpu":
        return f"cpu, {os.cpu_count()} cores; {there} GPUs"
    return f"cuda, {there} GPUs, the first a {torch.cuda.get_device_name()}"


def _kernels(config: ServerConfig) -> str:
    require_kernels(config)
    return str(config.backends)


def _compiler() -> Finding:
    """By which Triton makes its launcher when it runs first."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Finding("failed", "compiler", "none for Triton; install gcc and Python's headers, or set $CC")
    return Finding("ok", "compiler", compiler)


def _gpu_memory(config: ServerConfig) -> str:
    plan = memory_plan(config)
    check_memory(config, plan)
    free, total = torch.cuda.mem_get_info()
    needed = gigabytes(plan.nbytes(config.slots))
    return f"{gigabytes(free)} free of {gigabytes(total)}; {config.slots} sessions need {needed}"


def _encoder(config: ServerConfig) -> str:
    return require_encoder(config) if config.address is None else f"{config.encoder} of the cluster's nodes"


def _spans(where: str) -> str:
    check_exporter()
    return f"to {where}"


def _weights(config: ServerConfig) -> str:
    folder = models_folder(config.models_dir)
    require_model(config.model, folder, config.codec, config.lora_files)
    return f"{config.model} is whole; models are kept in {folder}"


def _memory(config: ServerConfig, *, with_model: bool) -> Finding:
    """The host's. Of a model that is not known, or not here, nothing is counted."""
    processes = RAY_PROCESSES + config.managers + config.denoisers
    needed = processes * PROCESS_BYTES + (config.denoisers * _model_bytes(config) if with_model else 0)
    free, total = _host_memory()
    without = "" if with_model else ", without its model"
    found = f"{gigabytes(free)} free of {gigabytes(total)}; the server needs some {gigabytes(needed)}{without}"
    if free >= needed:
        return Finding("ok", "memory", found)
    remedy = "end other programs, or take fewer --denoisers or --slots"
    return Finding("failed" if total < needed else "warning", "memory", f"{found}; {remedy}")


def _model_bytes(config: ServerConfig) -> int:
    """Of the host's memory, for one denoiser."""
    plan = memory_plan(config)
    elsewhere, of_cards = sum(line.nbytes for line in plan.host), CONTEXT_BYTES + RESERVE_BYTES
    return elsewhere + (plan.nbytes(config.slots) - of_cards if config.device == "cpu" else 0)


def _host_memory() -> tuple[int, int]:
    """What is free and what there is, in bytes, within the limit of a container."""
    host = psutil.virtual_memory()
    try:
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # No container's, or no limit.
        return host.available, host.total
    return min(host.available, max(0, limit - used)), min(host.total, limit)


def _shared_memory() -> Finding:
    """Where Ray keeps its objects, if it has room; it takes the disk otherwise."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("ok", "/dev/shm", f"none on {platform.system()}")
    total, _, free = shutil.disk_usage(folder)
    found = f"{gigabytes(free)} free of {gigabytes(total)}"
    if free >= SHM_BYTES:
        return Finding("ok", "/dev/shm", found)
    remedy = "give containers `--shm-size 2g`, pods a volume in memory"
    return Finding("warning", "/dev/shm", f"{found}, and Ray will keep its objects on the disk; {remedy}")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    found = f"{soft} at once, at most {'unlimited' if unlimited else hard}"
    if unlimited or hard >= FILES:
        return Finding("ok", "open files", found)
    return Finding("warning", "open files", f"{found}; raise it to {FILES} or more, see `ulimit -Hn`")


def _disks(config: ServerConfig) -> Iterator[Finding]:
    folder = config.recordings.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        yield _disk("recordings", there, "free some, or choose another folder by --recordings")
    else:
        remedy = "choose another one by --recordings"
        yield Finding("failed", "recordings", f"{str(there)!r} is no folder that can be written to; {remedy}")
    yield _disk("Ray's files", Path(tempfile.gettempdir()), "free some; or let $RAY_TMPDIR name another folder")


def _disk(name: str, folder: Path, remedy: str) -> Finding:
    total, _, free = shutil.disk_usage(folder)
    found = f"{gigabytes(free)} free of {gigabytes(total)} in {folder}"
    if free < DISK_BYTES or free < DISK_SHARE * total:
        return Finding("warning", name, f"{found}; {remedy}")
    return Finding("ok", name, found)


def _doors(config: ServerConfig) -> Iterator[Finding]:
    if config.address is not None:
        yield _tried("cluster", _cluster, config.address)
        return
    for listener in config.listeners:
        yield _tried(f"{listener.name} port", _port, listener)


def _cluster(address: str) -> str:
    require_cluster(address)
    return f"{address}; nodes and ports are the cluster's"


def _port(listener: Listener) -> str:
    require_port(listener)
    return f"{listener.port} of {listener.host} is free"

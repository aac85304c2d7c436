"""The machine that a benchmark runs on: what it is, its rates, and the floors that follow from them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from typing_extensions import override

from benchmarks.measure.counts import Work
from benchmarks.measure.timing import sample

ROOT = Path(__file__).parents[2]
COMMIT = "BENCHMARKED_COMMIT"
"""The variable that names the code's commit where it is no checkout. It is none of the servers' LONGTAKE_*."""

MEASURED_CODE = ("kernels", "engines", "benchmarks/*.py")

RATE_RUNS = 10
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Far more than any cache holds."""

GPU_FACTS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"


@dataclass(frozen=True)
class Machine:
    """Hardware, versions and code.

    `gpu` is what nvidia-smi says of it. `dirty`: the code differs from the commit's.
    """

    processor: str
    cores: int
    threads: int
    gpu: dict[str, str] | None
    python_version: str
    torch_version: str
    cudnn_version: int | None
    triton_version: str | None
    commit: str | None
    dirty: bool | None

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """This machine, as far as a benchmark on `device` goes."""
        commit = os.environ.get(COMMIT) or _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "--", *MEASURED_CODE)
        return cls(
            processor=_processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            gpu=_gpu(device) if device.type == "cuda" else None,
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            cudnn_version=torch.backends.cudnn.version() if device.type == "cuda" else None,
            triton_version=_version("triton"),
            commit=commit,
            dirty=None if changes is None else changes != "",
        )

    @override
    def __str__(self) -> str:
        hardware = f"{self.processor}, {self.cores} cores, {self.threads} threads"
        torch_and = (
            f"torch {self.torch_version}{'' if self.cudnn_version is None else f', cuDNN {self.cudnn_version}'}"
        )
        versions = f"{torch_and}, triton {self.triton_version}, Python {self.python_version}"
        code = f"commit {self.commit}{' with changes' if self.dirty else ''}"
        return "; ".join([*(self.gpu or {}).values(), hardware, versions, code])


def _processor() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [
        line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _gpu(device: torch.device) -> dict[str, str]:
    """Name, driver, clocks and power limit where nvidia-smi tells them, else the name."""
    properties = torch.cuda.get_device_properties(device)
    if shutil.which("nvidia-smi") is None:
        return {"name": properties.name}
    query = ("nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={GPU_FACTS}", "--format=csv,noheader")
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return {"name": properties.name}
    return dict(zip(GPU_FACTS.split(","), (fact.strip() for fact in answer.stdout.split(",")), strict=True))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git answers; None where it is not installed, or the code is no checkout of this user's."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


class Floor(NamedTuple):
    """The least time that some work takes, and what keeps it from taking less."""

    ms: float
    bound_by: Literal["compute", "memory"]


@dataclass(frozen=True)
class Rates:
    """What a device reaches at best: in a large square linear layer of the benchmark's dtype, and in a large copy.

    A copy's bytes count twice, read and written. Work that fits in a cache may stay below a floor by memory. The
    rate of 8 bits is that of PyTorch's INT8, and stands for FP8, too.
    """

    flops_per_s: float
    bytes_per_s: float
    eight_bit_ops_per_s: float | None = None

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, *, eight_bits: bool = False) -> Self:
        """All, on this machine now."""
        ops = _int8_ops_per_s(device) if eight_bits else None
        return cls(_matmul_flops_per_s(device, dtype), _copy_bytes_per_s(device), ops)

    def floor(self, work: Work) -> Floor:
        """Computing and moving overlap at best: the longer of the two.

        Raises:
            ValueError: there is work of 8 bits, whose rate was not measured.

        """
        compute_ms, memory_ms = work.flops / self.flops_per_s * 1e3, work.nbytes / self.bytes_per_s * 1e3
        if work.eight_bit_ops:
            if self.eight_bit_ops_per_s is None:
                raise ValueError(f"{work} has operations of 8 bits, whose rate was not measured")
            compute_ms += work.eight_bit_ops / self.eight_bit_ops_per_s * 1e3
        return Floor(compute_ms, "compute") if compute_ms >= memory_ms else Floor(memory_ms, "memory")


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    size = MATMUL_SIZE[device.type]
    x, weight = torch.randn(2, size, size, device=device).to(dtype)
    times, _ = sample(lambda _: F.linear(x, weight), RATE_RUNS, device)
    return 2 * size**3 / min(times.ms) * 1e3


def _int8_ops_per_s(device: torch.device) -> float:
    size = MATMUL_SIZE[device.type]
    x, weight = torch.randint(-127, 128, (2, size, size), dtype=torch.int8, device=device)
    times, _ = sample(lambda _: torch._int_mm(x, weight.t()), RATE_RUNS, device)
    return 2 * size**3 / min(times.ms) * 1e3


def _copy_bytes_per_s(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    times, _ = sample(lambda _: target.copy_(source), RATE_RUNS, device)
    return 2 * source.nbytes / min(times.ms) * 1e3


RESULTS = ROOT / "benchmarks" / "results"
"""Where what is measured is kept."""

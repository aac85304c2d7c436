"""How many threads of this process can run at once."""

from __future__ import annotations

import os
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use, as its affinity and the quotas of its control groups have it; at least one.

    PyTorch asks for the machine's: in a container with two of 64 cores its 64 threads would wait for each other.
    """
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affine, int(quota(_own_group(), CONTROL_GROUPS))))


def quota(group: str, root: Path) -> float:
    """Cores that a control group (of version 2) and those around it allow: at least one, 65536 without a limit."""
    folder, least = root / group.strip("/"), float(1 << 16)
    for outer in (folder, *folder.parents):
        if (limit := outer / "cpu.max").is_file():
            allowed, period = limit.read_text().split()
            least = least if allowed == "max" else min(least, int(allowed) / int(period))
        if outer == root:
            break
    return max(1.0, least)


def _own_group() -> str:
    groups = Path("/proc/self/cgroup")
    lines = groups.read_text().splitlines() if groups.is_file() else []
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")

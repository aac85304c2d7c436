from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.device.host_threads import quota, usable_cores


def shown_by_openmp(program: str, **environment: str) -> str:
    """What OpenMP says of its settings as `program` has it loaded."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    shows = {**without, "OMP_DISPLAY_ENV": "verbose", **environment}
    return subprocess.run([sys.executable, "-c", program], env=shows, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    "module", ["engines", "serving.cli.main", "serving.cli.demo", "serving.deployments.replicas.denoiser"]
)
def test_threads_that_wait_are_asleep_whatever_is_imported_first(module: str) -> None:
    assert "GOMP_SPINCOUNT = '0'" in shown_by_openmp(f"import {module}, torch")


def test_who_asks_for_spinning_threads_has_them() -> None:
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in shown_by_openmp("import engines, torch", OMP_WAIT_POLICY="active")


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"": "max 100000", "pods": "150000 100000", "pods/one": "max 100000"}, 1.5),
        ({"pods": "400000 100000", "pods/one": "200000 100000"}, 2.0),
        ({"pods/one": "10000 100000"}, 1.0),
        ({"pods/other": "100000 100000"}, 65536.0),
    ],
)
def test_the_tightest_quota_around_a_process_counts(tmp_path: Path, limits: dict[str, str], cores: float) -> None:
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{limit}\n")
    assert quota("/pods/one", tmp_path) == cores


def test_there_is_a_core_and_not_more_than_the_machine_has() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)

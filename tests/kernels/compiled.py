"""Compiling for real in a test: in a process of its own, since Triton interprets in that of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kernel_cases.compiler import Compiled
from benchmarks.measure.machine import ROOT


def compiled(names: Sequence[str]) -> dict[str, Compiled]:
    """Compile the cases of these names ahead of time, by name. Faults are the caller's to look for."""
    with TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        command = (sys.executable, "-m", "benchmarks.kernel_table", "--output", str(table), "--only", *names)
        run = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True
        )
        assert table.exists(), run.stderr
        rows = json.loads(table.read_text())["kernels"]
    return {row["name"]: Compiled(**{key: row[key] for key in Compiled.__dataclass_fields__}) for row in rows}

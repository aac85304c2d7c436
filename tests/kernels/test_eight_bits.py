from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.measure.machine import ROOT


@pytest.mark.parametrize("module", ["kernels.eight_bits", "kernels.linear_fp8"])
def test_8_bits_need_no_triton(module: str) -> None:
    program = f"import sys; sys.modules['triton'] = None; import {module}"
    run = subprocess.run((sys.executable, "-c", program), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

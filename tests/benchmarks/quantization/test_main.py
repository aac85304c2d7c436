"""The program, on the smallest model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quantization.__main__ import main

SMALL = ["--model", "tiny-taehv", "--size", "32x48", "--streams", "2", "--blocks", "3", "--runs", "2"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantization") / "results"
    main([*SMALL, "--threads", "1", "--results", str(folder)])
    return folder


@pytest.fixture
def parts(results: Path) -> dict[str, Any]:
    document = json.loads((results / "quantization_tiny-taehv_32x48_cpu.json").read_text())
    return dict(document["parts"])


def test_int8_loses_less_than_fp8_and_parts_less_than_the_whole(parts: dict[str, Any]) -> None:
    variants = parts["whole"]["variants"]
    assert variants["int8"]["median_error"] < variants["fp8"]["median_error"]
    assert variants["int8"]["worst_psnr_db"] > variants["fp8, nearest"]["worst_psnr_db"]
    assert variants["int8"]["median_error"] != variants["int8, and windows"]["median_error"]
    assert len(variants["int8"]["error_by_block"]) == len(variants["int8"]["psnr_db_by_block"]) == 3
    for part in ("kinds", "layers"):
        for found in parts[part]["variants"].values():
            assert 0 < found["median_error"] < variants["int8"]["median_error"]


def test_steps_and_times_are_told(parts: dict[str, Any], results: Path) -> None:
    windows = {name for name in parts["whole"]["variants"] if "windows" in name}
    assert set(parts["steps"]["variants"]) == set(parts["whole"]["variants"]) - windows
    assert parts["speed"]["4_together"]["times_as_fast"] > 0
    assert len(parts["speed"]["1_together"]["int8_samples_ms"]) == 2
    assert (results / "quantization_tiny-taehv_32x48_cpu.png").exists()


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--model", "nope"], "unknown model 'nope'"),
        (["--model", "streamdiffusionv2-1.3b"], "only restyles videos; streams from prompts alone are measured"),
        (["--model", "longlive-1.3b"], "longtake download longlive-1.3b"),
        (["--blocks", "2"], "three blocks"),
        (["--parts", "speed", "--device", "cuda"], "speed is that of a CPU"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(
    tmp_path: Path, asked: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*asked, "--models-dir", str(tmp_path)])
    assert complaint in capsys.readouterr().err

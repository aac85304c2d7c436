from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.decoders import Row, main


def test_onnxruntime_decodes_what_pytorch_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decoders.json"
    assert main(["--codecs", "pocket", "--sizes", "32x48", "--runs", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["decoder"] for row in rows] == ["PyTorch", "onnxruntime"]
    assert all(row["ms"] > 0 and row["difference"] < 2e-5 for row in rows)
    assert "| pocket | 32x48 | onnxruntime |" in capsys.readouterr().out


def test_a_library_without_plans_for_the_card_is_a_row_that_says_so() -> None:
    row = Row("TAEHV", (480, 832), "tensorrt-rtx", refused="it does not build for sm_90")
    assert str(row) == "| TAEHV | 480x832 | tensorrt-rtx | it does not build for sm_90 ||||"

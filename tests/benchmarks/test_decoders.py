from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import decoders, denoiser, text_encoder
from benchmarks.decoders import Codec


def test_onnxruntime_decodes_what_pytorch_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decoders.json"
    assert decoders.main(["--codecs", "pocket", "--sizes", "32x48", "--runs", "1", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    rows = document["rows"]
    by_torch, by_onnx, in_int8 = rows
    assert [row["engine"] for row in rows] == ["PyTorch", "onnxruntime", "onnxruntime, INT8 convolutions"]
    assert by_torch["difference"] <= by_onnx["difference"] < 2e-5 < in_int8["difference"] < 0.2
    assert all(row["ms"] > 0 for row in rows)
    assert "| pocket | 12 pictures of 32x48 | onnxruntime |" in capsys.readouterr().out
    assert document["bf16"] == [], "pocket doubles no pictures"


def test_in_bf16_doublings_lose_little_more_than_repeated_pixels() -> None:
    lost = Codec.of("TAEHV", (32, 48)).rounding()
    assert lost is not None
    assert lost.by_repeated_pixels - 2 < lost.as_it_is != lost.by_repeated_pixels > 40


def test_onnxruntime_encodes_what_pytorch_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert text_encoder.main(["--layers", "1", "--lengths", "16", "--runs", "1"]) == 0
    assert "| pocket, 1 of 2 layers | 16 tokens | onnxruntime |" in capsys.readouterr().out


@pytest.mark.slow
def test_onnxruntime_denoises_what_pytorch_does(tmp_path: Path) -> None:
    file = tmp_path / "denoiser.json"
    assert denoiser.main(["--runs", "1", "--json", str(file)]) == 0
    by_torch, by_onnx = json.loads(file.read_text())["rows"]
    assert by_torch["difference"] <= by_onnx["difference"] < 2e-5

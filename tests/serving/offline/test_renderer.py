"""In which order a film's blocks are made, and what is made before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from engines.runner.selection import select_runner
from engines.streaming.generator import Generator
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from serving.cli.main import main
from serving.offline.request import Request

TIMELINE = """
version: 1
model: tiny-taehv
height: 16
width: 32
seconds: 2.5
cues:
  - frame: 0
    prompt: a red balloon
  - frame: 9
    prompt: a red balloon, snow falls
"""


@pytest.fixture
def timeline(tmp_path: Path) -> Path:
    path = tmp_path / "timeline.yaml"
    path.write_text(TIMELINE)
    return path


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs of every generator from here on, with the numbers of the blocks."""
    verbs: list[str] = []
    generate, decode = Generator.generate, Generator.decode

    def generating(generator: Generator, *args: Any) -> list[Block]:
        blocks = generate(generator, *args)
        verbs.extend(f"generate {block.number}" for block in blocks)
        return blocks

    def decoding(generator: Generator, stream: Stream, block: Block) -> Tensor:
        verbs.append(f"decode {block.number}")
        return decode(generator, stream, block)

    monkeypatch.setattr(Generator, "generate", generating)
    monkeypatch.setattr(Generator, "decode", decoding)
    return verbs


def test_a_block_is_decoded_when_the_next_one_has_been_begun(
    timeline: Path, tmp_path: Path, order: list[str]
) -> None:
    assert main(["generate", str(timeline), "-o", str(tmp_path / "film.mp4")]) == 0
    assert order[:3] == ["generate 0", "generate 1", "decode 0"]
    assert order[3:] == ["generate 2", "decode 1", "generate 3", "decode 2", "decode 3"]


def test_nothing_is_begun_before_a_snapshot(timeline: Path, tmp_path: Path, order: list[str]) -> None:
    arguments = ["generate", str(timeline), "-o", str(tmp_path / "film.mp4"), "--snapshot-every", "1"]
    assert main(arguments) == 0
    assert order[:5] == ["generate 0", "generate 1", "decode 0", "decode 1", "generate 2"]
    assert (tmp_path / "film.00-01.312.snapshot").is_file()


def test_graphs_are_recorded_before_the_film(
    timeline: Path,
    tmp_path: Path,
    order: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, warmed = tmp_path / "plain.mp4", tmp_path / "warmed.mp4"
    assert main(["generate", str(timeline), "-o", str(plain)]) == 0
    assert "warming up" not in capsys.readouterr().err
    monkeypatch.setattr(Request, "graphs", True)
    monkeypatch.setattr(
        "engines.streaming.builder.select_runner",
        lambda transformer, backends, graphs: select_runner(transformer, backends, graphs=False),
    )
    assert main(["generate", str(timeline), "-o", str(warmed)]) == 0
    assert "warming up: block 6 of 6\n" in capsys.readouterr().err
    assert order.count("generate 5") == 1
    assert warmed.read_bytes() == plain.read_bytes()

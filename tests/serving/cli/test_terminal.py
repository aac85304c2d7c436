"""What others have said is shown on a terminal, and does nothing to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from serving.cli.main import main
from serving.cli.terminal import say, show_progress, tell
from serving.cli.weights import download
from serving.weights.manifest import Manifest, RepoRecord

SERVING = Path(__file__).parents[3] / "serving"

TO_PROGRAMS = ("pb/generate.py", "deployments/cluster_process.py")
"""What these print is for programs: paths of this repository, and JSON."""

SLY, SHOWN = "terms \x1b]0;owned\x07\x9b31m\u202e\n", "terms \\x1b]0;owned\\x07\\x9b31m\\u202e\\n"


def test_nothing_is_printed_but_by_way_of_the_terminal() -> None:
    files = {str(path.relative_to(SERVING)): ast.parse(path.read_text()) for path in SERVING.rglob("*.py")}
    printing = {
        name for name, tree in files.items() for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "print"
    }  # fmt: skip
    assert printing == {"cli/terminal.py", *TO_PROGRAMS}


def test_lines_and_progress_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(SLY)
    tell(SLY)
    show_progress(SLY, is_last=True)
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{SHOWN}\n", f"{SHOWN}\n\r{SHOWN}\x1b[K\n")


def test_what_a_hub_says_of_a_licence_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = RepoRecord("lab/m", "0" * 40, "", SLY, "", "", ())
    monkeypatch.setattr(download, "download", lambda *_, **__: Manifest("toy", "", (repo,)))
    assert main(["download", "longlive-1.3b", "--models-dir", str(tmp_path)]) == 0
    assert f"licence: {SHOWN}\n" in capsys.readouterr().out

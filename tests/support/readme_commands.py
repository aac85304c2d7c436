"""The commands that READMEs name, in their blocks without a language."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("README.md", "serving/README.md", "helm/longtake/README.md")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def prose_of(file: str) -> str:
    """A README without its blocks."""
    return _BLOCK.sub("", (ROOT / file).read_text())


def commands_of(file: str) -> list[str]:
    """The commands of a README in their order, without the comments behind them; of .venv/bin without that."""
    blocks = [text for language, text in _BLOCK.findall((ROOT / file).read_text()) if not language]
    return [command for block in blocks for command in _commands(block)]


def _commands(block: str) -> Iterator[str]:
    command = ""
    for line in block.splitlines(keepends=True):
        command += line
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # A quotation goes on.
            continue
        if words:
            yield re.sub(r"\s+# .*", "", command.strip()).replace(".venv/bin/", "")
        command = ""

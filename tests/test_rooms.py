"""Which room may import which: one way, in the order in which the rooms are listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors",), ("config",), ("device", "sampling"), ("text", "vae", "wan", "cache"), ("loading",), ("runner",),
    ("streaming",), ("pocket",),
)  # fmt: skip
"""Of the engines: a room imports rooms of lines before its own, and none of its own line."""

WITHOUT_KERNELS = ("config", "cache")
MOST_FILES = 12


def modules(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "engines" and len(parts) > 1 else None


@pytest.mark.parametrize(("folder", "others"), [("kernels", ("engines", "serving")), ("engines", ("serving",))])
def test_folders_are_imported_one_way(folder: str, others: tuple[str, ...]) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(folder) for module in imports(path)
        if module.split(".")[0] in (*others, "benchmarks", "tests")
    }  # fmt: skip
    assert not wrong


def test_rooms_of_the_engine_are_imported_one_way() -> None:
    line = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    wrong = set()
    for path in modules("engines"):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for other in {room_of(module) for module in imports(path)} - {None, room}:
            if room in line and other in line and line[other] >= line[room]:
                wrong.add(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_integers_and_options_know_no_kernel() -> None:
    wrong = [
        path for room in WITHOUT_KERNELS for path in modules(f"engines/{room}")
        if any(module.split(".")[0] == "kernels" for module in imports(path))
    ]  # fmt: skip
    assert not wrong


def test_streams_know_the_runner_by_its_protocol() -> None:
    for path in modules("engines/streaming"):
        known = imports(path)
        assert not any(module.startswith("engines.wan") for module in known), path
        kernels = {module for module in known if module.startswith("kernels")}
        assert not kernels or path.name == "builder.py", path


@pytest.mark.parametrize("folder", ["kernels", "engines"])
def test_a_room_has_a_dozen_files_at_most(folder: str) -> None:
    rooms = {path.parent for path in modules(folder)}
    crowded = {room.name: files for room in rooms if (files := _files(room)) > MOST_FILES}
    assert not crowded


def _files(room: Path) -> int:
    return sum(1 for path in room.glob("*.py") if path.name != "__init__.py")

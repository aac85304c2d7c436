"""Which room may import which: one way, in the order in which the rooms are listed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDERS = ("kernels", "engines", "serving", "benchmarks", "tests")
"""Each imports those before it."""

ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors",), ("config",), ("device", "sampling"), ("text", "vae", "wan", "cache"), ("export",),
    ("plans",), ("loading", "bindings"), ("runner",), ("streaming",), ("video",), ("quantization",), ("pocket",),
)  # fmt: skip
"""Of the engines: a room imports rooms of lines before its own, and none of its own line."""

SERVING: tuple[tuple[str, ...], ...] = (
    ("errors", "auth", "background_tasks", "hosts", "tracing"), ("origins", "rate_limit", "media", "timeline"),
    ("media.clips", "timeline.formats", "session"),
    ("protocol", "replication"), ("config",), ("weights",), ("pipeline",),
    ("client", "offline", "worker.streams", "worker.capacity", "worker.pictures", "gateway.ownership"),
    ("gateway.failover", "worker.state"), ("gateway.recording", "worker.blocks"),
    ("worker", "gateway"), ("web",),
    ("launch",), ("deployments.telemetry", "deployments.routing", "deployments.scaling"),
    ("deployments.replicas",), ("deployments",),
    ("cli.options", "cli.terminal", "cli.interrupts"), ("cli.weights", "cli.films", "cli.demonstration"), ("cli",),
)  # fmt: skip
"""The same for the rooms of serving, and the files beside them."""

WITHOUT_KERNELS = ("config", "cache")
MOST_FILES = 12


def modules(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it it does."""
    return _imported_by(ast.walk(ast.parse(path.read_text())))


def loads(path: Path) -> set[str]:
    """Modules that a file imports as it is loaded itself."""
    return _imported_by(_run_at_load(ast.parse(path.read_text())))


def _run_at_load(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _run_at_load(child)


def _imported_by(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def name_of(path: Path) -> str:
    """The module that a file is."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str, rooms: Sequence[Sequence[str]]) -> str | None:
    """The room, of those listed, that a module is in: the innermost one."""
    name = module.partition(".")[2]
    inside = [room for line in rooms for room in line if name == room or name.startswith(f"{room}.")]
    return max(inside, key=len, default=None)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_imported_one_way(folder: str) -> None:
    later = FOLDERS[FOLDERS.index(folder) + 1 :]
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(folder) for module in imports(path)
        if module.split(".")[0] in later
    }  # fmt: skip
    assert not wrong


@pytest.mark.parametrize(("folder", "rooms"), [("engines", ROOMS), ("serving", SERVING)])
def test_rooms_are_imported_one_way(folder: str, rooms: Sequence[Sequence[str]]) -> None:
    line = {room: number for number, beside in enumerate(rooms) for room in beside}
    wrong = set()
    for path in modules(folder):
        room = room_of(name_of(path), rooms)
        known = {room_of(module, rooms) for module in imports(path) if module.startswith(f"{folder}.")}
        for other in known - {None, room}:
            if room is not None and other is not None and line[other] >= line[room]:
                wrong.add(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_no_file_is_needed_to_load_what_it_needs() -> None:
    files = {name_of(path): path for folder in FOLDERS for path in modules(folder)}
    TopologicalSorter({name: loads(path) & files.keys() - {name} for name, path in files.items()}).prepare()


def test_every_room_of_serving_has_its_line() -> None:
    listed = {room for line in SERVING for room in line}
    rooms = {path.parent.relative_to(ROOT / "serving") for path in modules("serving")} - {Path()}
    assert {".".join(room.parts) for room in rooms if room.parts[0] != "pb"} <= listed


def test_only_deployments_know_ray() -> None:
    for path in modules("serving"):
        knows = any(module.split(".")[0] == "ray" for module in imports(path))
        assert not knows or "deployments" in path.parts, path


@pytest.mark.parametrize("module", ["serving.client.aio", "serving.client.blocking", "serving.client.capture"])
def test_a_client_needs_neither_ray_nor_torch_nor_an_engine(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"ray", "torch", "engines", "kernels"}


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


@pytest.mark.parametrize("folder", ["kernels", "engines", "serving", "benchmarks"])
def test_a_room_has_a_dozen_files_at_most(folder: str) -> None:
    # Benchmarks that are run by their names lie side by side.
    rooms = {path.parent for path in modules(folder)} - {ROOT / "benchmarks"}
    crowded = {room.name: files for room in rooms if (files := _files(room)) > MOST_FILES}
    assert not crowded


def _files(room: Path) -> int:
    return sum(1 for path in room.glob("*.py") if path.name != "__init__.py")

"""A model's plans: built once, kept whole, and refused by name where they do not fit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock

from engines.errors import PlanError, PlanStopped
from engines.export.graph import EXPORT_VERSION, FACTS_FILE, StageGraph
from engines.plans import manifest
from engines.plans import store as plan_store
from engines.plans.builder import BuildStep, BuiltPlan, Library, PlanTarget, Watch
from engines.plans.manifest import MANIFEST, PlanKey
from engines.plans.store import IGNORED, PLANS, UNFINISHED, Plan, PlanStore, PlanWanted
from tests.support.onnx_graphs import tiny_graph

SIZE = (64, 64)
LIBRARY = Library("tensorrt-rtx", "1.7.1", "Proprietary")

WANTED = PlanWanted(
    "pocket",
    False,
    False,
    "decoder",
    "decoder-steady-1",
    SIZE,
    "weights 0",
    "fp16",
    "tensorrt-rtx",
    "1.7.1",
    "sm_89",
    "NVIDIA L4",
)


class CountingBuilder:
    """Makes a plan of nothing but a line of text, and counts."""

    def __init__(self, library: Library = LIBRARY, before: Callable[[], None] = lambda: None) -> None:
        self.library = library
        self.built = 0
        self.timings: list[bytes] = []
        self._before = before

    def target(self, capabilities: Sequence[str]) -> PlanTarget:
        return PlanTarget(tuple(capabilities))

    def build(self, graph: StageGraph, target: PlanTarget, timing_cache: bytes, watch: Watch) -> BuiltPlan:
        self._before()
        if not watch(BuildStep("Building engine", 1, 1)):
            raise PlanStopped("stopped")
        self.built += 1
        self.timings.append(timing_cache)
        data = f"plan {self.built} of {graph.name} for {target}"
        return BuiltPlan(memoryview(data.encode()), 3, 4096, 1.5, b"timed" if target.device else b"")


@pytest.fixture
def graph(tmp_path: Path) -> StageGraph:
    return tiny_graph(tmp_path / "graph")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "pocket"


def obtain(
    model: Path,
    graph: StageGraph,
    builder: CountingBuilder,
    target: PlanTarget | None = None,
    *,
    watch: Watch = lambda step: True,
) -> Plan:
    target = target or builder.target(["sm_89", "sm_120"])

    def export(folder: Path) -> StageGraph:
        shutil.copytree(graph.folder, folder)
        return StageGraph.load(folder)

    return store(model).obtain(export, SIZE, builder, target, "Apache-2.0", watch)


def store(model: Path) -> PlanStore:
    return PlanStore(model, model / ".lock")


def left_in(model: Path) -> list[str]:
    return sorted(path.name for path in (model / PLANS).iterdir() if path.name != IGNORED)


def test_a_plan_is_built_once(model: Path, graph: StageGraph) -> None:
    builder = CountingBuilder()
    first, second = (obtain(model, graph, builder) for _ in range(2))
    assert builder.built == 1
    assert first == second
    assert store(model).find(WANTED) == first
    assert replace(first.graph, folder=graph.folder) == graph
    assert first.path.read_text() == "plan 1 of decoder-steady-1 for sm_89, sm_120"


def test_the_manifest_says_what_it_is_and_under_which_terms(model: Path, graph: StageGraph) -> None:
    manifest = obtain(model, graph, CountingBuilder()).manifest
    assert (manifest.weights_licence, manifest.library_licence) == ("Apache-2.0", "Proprietary")
    assert (manifest.layers, manifest.activation_bytes, manifest.seconds) == (3, 4096, 1.5)
    assert manifest.key.inputs == ("latents [1, 4, 8, 8] float16", "past [1, 4, 8, 8] float16")


def test_whatever_a_plan_depends_on_makes_another_one(tmp_path: Path, model: Path, graph: StageGraph) -> None:
    target = PlanTarget(("sm_89",))
    same = PlanKey.of(tiny_graph(tmp_path / "same"), SIZE, LIBRARY, target)
    others = [
        PlanKey.of(tiny_graph(tmp_path / "weights", seed=1), SIZE, LIBRARY, target),
        PlanKey.of(tiny_graph(tmp_path / "operator", operator="Sigmoid"), SIZE, LIBRARY, target),
        PlanKey.of(replace(graph, recipe="fp32"), SIZE, LIBRARY, target),
        PlanKey.of(graph, (64, 96), LIBRARY, target),
        PlanKey.of(graph, SIZE, replace(LIBRARY, version="1.8"), target),
        PlanKey.of(graph, SIZE, LIBRARY, PlanTarget(("sm_89", "sm_120"))),
        PlanKey.of(graph, SIZE, LIBRARY, PlanTarget(("sm_89",), "NVIDIA L4")),
    ]
    key = PlanKey.of(graph, SIZE, LIBRARY, target)
    assert key.digest == same.digest
    assert len({key.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_weights_beside_the_graph_count_even_where_the_fingerprint_is_the_same(graph: StageGraph) -> None:
    target = PlanTarget(("sm_89",))
    key = PlanKey.of(graph, SIZE, LIBRARY, target)
    data = graph.folder / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    assert PlanKey.of(graph, SIZE, LIBRARY, target).data != key.data


def test_what_was_timed_lies_beside_the_plans(tmp_path: Path, model: Path, graph: StageGraph) -> None:
    builder, target = CountingBuilder(), PlanTarget(("sm_89",), "NVIDIA L4")
    obtain(model, graph, builder, target)
    obtain(model, tiny_graph(tmp_path / "other", name="decoder-first-1"), builder, target)
    assert builder.timings == [b"", b"timed"]


def test_a_build_that_is_stopped_leaves_nothing(model: Path, graph: StageGraph) -> None:
    with pytest.raises(PlanStopped):
        obtain(model, graph, CountingBuilder(), watch=lambda step: False)
    assert left_in(model) == []


def test_a_full_disk_leaves_nothing_and_says_so(
    model: Path, graph: StageGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(PlanError, match="No space left on device; make room, then build again; nothing of it"):
            obtain(model, graph, CountingBuilder())
    assert left_in(model) == []
    assert obtain(model, graph, CountingBuilder()) == store(model).find(WANTED)


def test_what_a_killed_build_left_is_cleared_away(model: Path, graph: StageGraph) -> None:
    unfinished = model / PLANS / UNFINISHED
    unfinished.mkdir(parents=True)
    (unfinished / "engine.plan").write_bytes(b"half a p")
    plan = obtain(model, graph, CountingBuilder())
    assert left_in(model) == [plan.folder.name]


def test_of_two_builders_at_once_the_second_waits_and_finds_the_plan(model: Path, graph: StageGraph) -> None:
    begun, may_end, waits = Event(), Event(), Event()

    def note_waiting(step: BuildStep) -> bool:
        if step.phase.startswith("Waiting"):
            waits.set()
        return True

    def build_slowly() -> None:
        begun.set()
        assert may_end.wait(10)

    first, second = CountingBuilder(before=build_slowly), CountingBuilder()
    threads = [Thread(target=obtain, args=(model, graph, first))]
    threads[0].start()
    assert begun.wait(10)
    threads.append(Thread(target=obtain, args=(model, graph, second), kwargs={"watch": note_waiting}))
    threads[1].start()
    assert waits.wait(10)
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert (first.built, second.built) == (1, 0)
    assert store(model).find(WANTED).path.read_text().startswith("plan 1")


def test_waiting_can_be_stopped(model: Path, graph: StageGraph) -> None:
    model.mkdir()
    with FileLock(model / ".lock"), pytest.raises(PlanStopped, match="another command to wait for"):
        obtain(model, graph, CountingBuilder(), watch=lambda step: False)
    assert left_in(model) == []


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (replace(WANTED, name="decoder-first-1"), "there is no plan of decoder-first-1 at 64x64 in"),
        (replace(WANTED, size=(480, 832)), "there is no plan of decoder-steady-1 at 480x832 in"),
        (replace(WANTED, library="tensorrt"), "is one of tensorrt-rtx, not of tensorrt"),
        (replace(WANTED, weights="weights 1"), "was made of other weights than pocket has now"),
        (replace(WANTED, recipe="fp32"), "computes in fp16, and is to compute in fp32"),
        (replace(WANTED, capability="sm_86"), "is for sm_89, sm_120; NVIDIA L4 is sm_86"),
        (replace(WANTED, library_version="1.8"), r"was made by tensorrt-rtx 1\.7\.1; here is 1\.8"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_what_makes_one(
    model: Path, graph: StageGraph, wanted: PlanWanted, complaint: str
) -> None:
    obtain(model, graph, CountingBuilder())
    with pytest.raises(PlanError, match=complaint) as refused:
        store(model).find(wanted)
    assert str(refused.value).endswith(f"; make it: {wanted.command}")


def forget_export(plan: Plan) -> None:
    """As a manifest was written before it said how the graph was exported."""
    path = plan.folder / MANIFEST
    document = json.loads(path.read_text())
    del document["key"]["export"]
    path.write_text(json.dumps(document))


def test_a_plan_of_a_graph_that_is_exported_in_another_way_by_now_is_refused_and_built_again(
    model: Path, graph: StageGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = CountingBuilder()
    forget_export(obtain(model, graph, builder))
    for version in (EXPORT_VERSION, EXPORT_VERSION + 1):
        for module in (manifest, plan_store):
            monkeypatch.setattr(module, "EXPORT_VERSION", version)
        with pytest.raises(PlanError, match=f"by another version of Longtake, .*; make it: {WANTED.command}$"):
            store(model).find(WANTED)
        assert obtain(model, graph, builder) == store(model).find(WANTED)
    assert builder.built == 3


def test_a_plan_that_was_timed_on_another_card_is_refused(model: Path, graph: StageGraph) -> None:
    obtain(model, graph, CountingBuilder(), PlanTarget(("sm_89",), "NVIDIA L40S"))
    with pytest.raises(PlanError, match="was timed on NVIDIA L40S; this card is NVIDIA L4"):
        store(model).find(WANTED)


def test_the_command_names_all_that_matters() -> None:
    assert WANTED.command == (
        "longtake plan pocket --stage decoder --for sm_89 --size 64x64 --library tensorrt-rtx"
    )
    tiny = replace(WANTED, tiny_codec=True, size=None, library="tensorrt").command
    assert tiny == "longtake plan pocket --stage decoder --for sm_89 --codec tiny --library tensorrt"


def change_a_byte(plan: Plan) -> None:
    data = bytearray(plan.path.read_bytes())
    data[5] ^= 1
    plan.path.write_bytes(data)


def cut_short(plan: Plan) -> None:
    os.truncate(plan.path, plan.manifest.bytes - 1)


def change_what_is_said_of_its_graph(plan: Plan) -> None:
    path = plan.folder / FACTS_FILE
    path.write_text(path.read_text().replace('"past"', '"pasu"'))


def change_its_cards(plan: Plan) -> None:
    path = plan.folder / MANIFEST
    path.write_text(path.read_text().replace('"sm_120"', '"sm_121"'))


def cut_manifest(plan: Plan) -> None:
    os.truncate(plan.folder / MANIFEST, 100)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change_a_byte, "engine.plan is damaged: its bytes are not those that were written"),
        (cut_short, "engine.plan is cut short or grown: it has 43 bytes, not 44"),
        (cut_manifest, "manifest.json is damaged"),
        (change_its_cards, "manifest.json is damaged: the plan that it tells of lies in another folder"),
        (change_what_is_said_of_its_graph, "graph.json is damaged: its bytes are not those that were written"),
        (lambda plan: (plan.folder / FACTS_FILE).unlink(), "graph.json cannot be read: No such file"),
        (lambda plan: plan.path.unlink(), "engine.plan cannot be read: No such file"),
    ],
)
def test_a_damaged_plan_is_refused_and_built_again(
    model: Path, graph: StageGraph, damage: Callable[[Plan], None], complaint: str
) -> None:
    damage(obtain(model, graph, CountingBuilder()))
    with pytest.raises(PlanError, match=complaint):
        store(model).find(WANTED)
    builder = CountingBuilder()
    obtain(model, graph, builder)
    assert builder.built == 1
    assert store(model).find(WANTED).path.read_text().startswith("plan 1")


@pytest.mark.parametrize("models", ["models", "elsewhere"])
def test_plans_that_are_made_in_a_checkout_are_not_committed(
    tmp_path: Path, graph: StageGraph, models: str
) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", checkout], check=True)
    obtain(checkout / models / "pocket", graph, CountingBuilder(), PlanTarget(("sm_89",), "NVIDIA L4"))
    command = ["git", "ls-files", "--others", "--exclude-standard", f"{models}/pocket/{PLANS}"]
    assert subprocess.check_output(command, cwd=checkout) == b""

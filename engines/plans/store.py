"""The plans of one model, in a folder of their own beside its weights.

Each has a folder, named by its graph and by the hash of all that it depends on; it holds the plan, its manifest,
the description of its graph and, once it has run, what the runtime keeps. A plan's folder takes its name when it
is whole: whoever reads needs no lock.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from engines.errors import PlanError, PlanStopped
from engines.export.graph import EXPORT_VERSION, FACTS_FILE, Stage, StageGraph
from engines.export.quantized_convs import PictureLoss
from engines.plans.builder import BuildStep, BuiltPlan, PlanBuilder, PlanTarget, Watch
from engines.plans.manifest import MANIFEST, PictureSize, PlanKey, PlanManifest, sha256_of

PLANS = "plans"
"""The folder of plans in that of a model."""

PLAN_FILE = "engine.plan"
IGNORED = ".gitignore"
WAIT_S = 0.2
"""From one look at the lock to the next."""

UNFINISHED = ".building"
"""The folder of the plan that is being built, and of its graph."""


class Plan(NamedTuple):
    """A plan that is whole: its folder, and what is known of it."""

    folder: Path
    manifest: PlanManifest

    @property
    def path(self) -> Path:
        """The plan itself."""
        return self.folder / PLAN_FILE

    @property
    def graph(self) -> StageGraph:
        """What it takes and returns; the graph itself is gone. Raises PlanError if that file is damaged."""
        return StageGraph.read(self.folder)

    def runtime_cache(self, capability: str) -> Path:
        """Where TensorRT-RTX may keep what it completes on cards of a compute capability, such as sm_89.

        It takes what it finds there only on those, so cards of two kinds that share a folder would write over
        each other's.
        """
        return self.folder / f"runtime-{capability}.cache"


@dataclass(frozen=True)
class PlanWanted:
    """The plan that a model needs on a card.

    Args:
        model: as `longtake plan` knows it.
        tiny_codec: whether its decoder is the tiny one.
        int8_convs: whether its convolutions are in INT8.
        stage: to be run.
        name: of the stage's graph.
        size: of the pictures; None for a stage that knows none.
        weights: hash of the network's; None where any will do.
        recipe: which numbers are to compute what, as the graph says it.
        library: that is to run it.
        library_version: of that.
        capability: of the card.
        device: the card's name.

    """

    model: str
    tiny_codec: bool
    int8_convs: bool
    stage: Stage
    name: str
    size: PictureSize | None
    weights: str | None
    recipe: str
    library: str
    library_version: str
    capability: str
    device: str

    @property
    def command(self) -> str:
        """What makes this plan."""
        size = "" if self.size is None else f" --size {_size(self.size)}"
        codec = " --codec tiny" if self.tiny_codec else ""
        convs = " --int8-convs" if self.int8_convs else ""
        library = f" --library {self.library}"
        asked = f"--stage {self.stage} --for {self.capability}{size}{codec}{convs}{library}"
        return f"longtake plan {self.model} {asked}"


class PlanStore:
    """The plans in the folder of a model; `lock` is the file that is held by whoever changes that folder."""

    def __init__(self, folder: Path, lock: Path) -> None:
        self._folder = folder / PLANS
        self._lock = lock

    def obtain(
        self,
        export: Callable[[Path], StageGraph],
        size: PictureSize | None,
        builder: PlanBuilder,
        target: PlanTarget,
        license: str,
        watch: Watch,
        loss: PictureLoss | None = None,
    ) -> Plan:
        """The plan of a graph for `target`, built unless it is there.

        Only one is built at a time in a model's folder: others wait. A build that fails or is stopped leaves
        nothing.

        Args:
            export: writes the graph to a folder, which is cleared away.
            size: of the pictures; None for a stage that knows none.
            builder: builds it.
            target: the cards that it is for.
            license: terms of the weights.
            watch: is told of every step, those of waiting among them.
            loss: what INT8 convolutions in the graph cost, for the manifest.

        Raises:
            PlanError: it cannot be built, or not be kept; says why.
            PlanStopped: `watch` wanted no more of it.

        """
        with self._changing(watch):
            watch(BuildStep("Exporting the graph", 0, 1))
            graph = export(self._folder / UNFINISHED / "graph")
            if not watch(BuildStep("Exporting the graph", 1, 1)):
                raise PlanStopped(f"the build of {graph.name} was stopped; nothing of it is left")
            key = PlanKey.of(graph, size, builder.library, target)
            if (here := self._whole(key)) is not None:
                return here
            timing_cache = self._timing_cache(key)
            earlier = timing_cache.read_bytes() if timing_cache.exists() else b""
            built = builder.build(graph, target, earlier, watch)
            if built.timing_cache:
                _write(timing_cache, memoryview(built.timing_cache))
            return self._keep(key, built, graph, license, builder.library.license, loss)

    def libraries(self, stage: Stage) -> set[str]:
        """Those of which there is any plan of a stage, whatever it is made of; what is damaged counts for none."""
        found = set[str]()
        for folder in self._folder.glob(f"{stage}-*"):
            with suppress(PlanError):
                found.add(PlanManifest.read(folder).key.library)
        return found

    def find(self, wanted: PlanWanted) -> Plan:
        """The plan that is wanted, read to its last byte.

        Raises as `look_up`, and PlanError if it is damaged.
        """
        plan = self.look_up(wanted)
        if (fault := _fault(plan)) is not None:
            raise _refused(wanted, fault)
        return plan

    def look_up(self, wanted: PlanWanted) -> Plan:
        """The plan that is wanted by what is said of it.

        Raises PlanError if there is none, or only one of other weights or of another graph of them, of another
        library or version or for other cards; it ends with the command that makes it.
        """
        plans, damage = self._plans(wanted)
        if not plans:
            missing = f"there is no plan of {_what(wanted.name, wanted.size)} in {self._folder}"
            raise _refused(wanted, damage or missing)
        for fits, complaint in _CHECKS:
            fitting = [plan for plan in plans if fits(plan.manifest.key, wanted)]
            if not fitting:
                found = plans[0]
                raise _refused(wanted, f"the plan in {found.folder} {complaint(found.manifest.key, wanted)}")
            plans = fitting
        # The latest: the graph may have changed since an earlier one was made.
        return max(plans, key=lambda each: each.manifest.made)

    def _plans(self, wanted: PlanWanted) -> tuple[list[Plan], str]:
        """Plans of the graph that is wanted, and what is wrong with those that cannot be told, if anything."""
        plans, damage = list[Plan](), ""
        for folder in sorted(self._folder.glob(f"{wanted.name}-*")):
            try:
                plans.append(Plan(folder, PlanManifest.read(folder)))
            except PlanError as error:
                damage = str(error)
        return [plan for plan in plans if _is_of(plan.manifest.key, wanted)], damage

    @contextmanager
    def _changing(self, watch: Watch) -> Iterator[None]:
        """Own the folder for a while; explain what its disk refuses."""
        unfinished, lock = self._folder / UNFINISHED, FileLock(self._lock)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _acquire(lock, watch)
            try:
                # They have weights in them, and are for the cards of one place.
                (self._folder / IGNORED).write_text("*\n")
                # Left by a process that was killed.
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                yield
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
                lock.release()
        except OSError as error:
            remedy = "make room" if error.errno == errno.ENOSPC else "choose another folder with --models-dir"
            raise PlanError(
                f"the plan cannot be written to {self._folder}: {error.strerror or error}; {remedy}, then build "
                "again; nothing of it is left"
            ) from error

    def _whole(self, key: PlanKey) -> Plan | None:
        """None where it is not there, or damaged: it is built again then."""
        folder = self._folder_of(key)
        try:
            plan = Plan(folder, PlanManifest.read(folder))
        except PlanError:
            return None
        return plan if plan.manifest.key == key and _fault(plan) is None else None

    def _keep(
        self, key: PlanKey, built: BuiltPlan, graph: StageGraph, weights_license: str, library_license: str,
        loss: PictureLoss | None,
    ) -> Plan:  # fmt: skip
        unfinished, folder = self._folder / UNFINISHED / "plan", self._folder_of(key)
        unfinished.mkdir()
        _write(unfinished / PLAN_FILE, built.data)
        manifest = PlanManifest(
            key=key,
            sha256=sha256_of(unfinished / PLAN_FILE),
            facts_sha256=sha256_of(graph.folder / FACTS_FILE),
            bytes=built.data.nbytes,
            layers=built.layers,
            activation_bytes=built.activation_bytes,
            seconds=round(built.seconds, 3),
            weights_licence=weights_license,
            library_licence=library_license,
            longtake=version("longtake"),
            made=datetime.now(UTC).isoformat(),
            loss=loss,
        )
        manifest.write(unfinished)
        shutil.copyfile(graph.folder / FACTS_FILE, unfinished / FACTS_FILE)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
        return Plan(folder, manifest)

    def _folder_of(self, key: PlanKey) -> Path:
        return self._folder / _name_of(key)

    def _timing_cache(self, key: PlanKey) -> Path:
        """What a library has timed on a kind of card, for all plans."""
        device = "".join(character if character.isalnum() else "-" for character in key.device)
        return self._folder / f"{key.library}-{key.library_version}-{device}.timing"


def _acquire(lock: FileLock, watch: Watch) -> None:
    """Raises PlanStopped if `watch` does not want to wait any longer."""
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT_S, poll_interval=WAIT_S)
        except Timeout:
            if not watch(BuildStep("Waiting for another command that writes here", 0, 1)):
                raise PlanStopped("there was another command to wait for; nothing has been built") from None


def _write(path: Path, data: memoryview) -> None:
    """Whole or not at all. What a killed process leaves is written over: one at a time changes the folder."""
    place = path.with_name(f".{path.name}.new")
    try:
        with place.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _fault(plan: Plan) -> str | None:
    """What is wrong with a plan's bytes, or with what is said of it, if anything."""
    manifest, facts = plan.manifest, plan.folder / FACTS_FILE
    if plan.folder.name != _name_of(manifest.key):
        return f"{plan.folder / MANIFEST} is damaged: the plan that it tells of lies in another folder"
    try:
        size = plan.path.stat().st_size
        if size != manifest.bytes:
            return f"{plan.path} is cut short or grown: it has {size:,} bytes, not {manifest.bytes:,}"
        for path, written in ((plan.path, manifest.sha256), (facts, manifest.facts_sha256)):
            if sha256_of(path) != written:
                return f"{path} is damaged: its bytes are not those that were written"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror or error}"
    return None


def _name_of(key: PlanKey) -> str:
    """Of the folder of such a plan."""
    return f"{key.name}-{key.digest[:16]}"


def _is_of(key: PlanKey, wanted: PlanWanted) -> bool:
    return (key.name, key.stage, key.size) == (wanted.name, wanted.stage, wanted.size)


Check = tuple[Callable[[PlanKey, PlanWanted], bool], Callable[[PlanKey, PlanWanted], str]]

_CHECKS: tuple[Check, ...] = (
    (
        lambda key, wanted: key.library == wanted.library,
        lambda key, wanted: f"is one of {key.library}, not of {wanted.library}",
    ),
    (
        lambda key, wanted: wanted.weights in (None, key.weights),
        lambda key, wanted: f"was made of other weights than {wanted.model} has now",
    ),
    (
        lambda key, wanted: key.recipe == wanted.recipe,
        lambda key, wanted: f"computes in {key.recipe}, and is to compute in {wanted.recipe}",
    ),
    (
        lambda key, wanted: key.export == EXPORT_VERSION,
        lambda key, wanted: f"was made by another version of Longtake, of a graph that {wanted.model} has no more",
    ),
    (
        lambda key, wanted: wanted.capability in key.capabilities,
        lambda key, wanted: f"is for {', '.join(key.capabilities)}; {wanted.device} is {wanted.capability}",
    ),
    (
        lambda key, wanted: key.device in ("", wanted.device),
        lambda key, wanted: f"was timed on {key.device}; this card is {wanted.device}",
    ),
    (
        lambda key, wanted: key.library_version == wanted.library_version,
        lambda key, wanted: f"was made by {key.library} {key.library_version}; here is {wanted.library_version}",
    ),
)
"""What a plan has to meet, and what is said of one that does not."""


def _refused(wanted: PlanWanted, reason: str) -> PlanError:
    return PlanError(f"{reason}; make it: {wanted.command}")


def _what(name: str, size: PictureSize | None) -> str:
    return name if size is None else f"{name} at {_size(size)}"


def _size(size: PictureSize) -> str:
    return f"{size[0]}x{size[1]}"

"""Downloading a model: its files from one revision of each repository, checked, with a manifest at the end."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from serving.errors import DownloadError
from serving.weights.catalog import CatalogEntry, RemoteFile, Role
from serving.weights.hub_client import CARD, Hub, HubFile, Snapshot
from serving.weights.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    RepoRecord,
    read_manifest,
    sha256_of,
    write_manifest,
)

DEFAULT_REVISION = "main"
PARTIAL = ".partial"
LOCK = ".lock"


@dataclass(frozen=True)
class Progress:
    """How far a download is: file `number` of `files`, `done` of its `size` bytes here or, at last, checked."""

    path: str
    number: int
    files: int
    stage: Literal["fetch", "check"]
    done: int
    size: int


def _ignore(progress: Progress) -> None:
    pass


@dataclass(frozen=True)
class _Item:
    """A file to bring, and where it belongs in the model's folder."""

    snapshot: Snapshot
    file: HubFile
    local: str


def download(
    entry: CatalogEntry,
    folder: Path,
    *,
    revisions: Mapping[str, str] | None = None,
    extras: Iterable[Role] = (),
    update: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    progress: Callable[[Progress], None] = _ignore,
) -> Manifest:
    """Bring `folder` to hold the model that `entry` describes, every byte checked against the hub's hashes.

    `revisions` gives a branch, tag or commit by repository id; elsewhere it is `main`. A folder keeps the
    commits that it was filled from, unless `update`: then its manifest so far stays beside the new one, as
    manifest-until-<time>.json. Called again after a failure, it continues. DownloadError says what to do.
    """
    files = entry.files(extras)
    with _in_folder(folder):
        hub = Hub(endpoint, token)
        before = _manifest_of(entry, folder)
        snapshots = _resolve(hub, files, revisions or {})
        moved = [
            old for old in _records(before) if old.id in snapshots and snapshots[old.id].commit != old.revision
        ]
        if moved and not update:
            raise DownloadError(_mixing(folder, moved[0], snapshots[moved[0].id]))
        items = _items(files, snapshots)
        if moved:
            _retire_manifest(folder)
        _bring(hub, folder, items, progress)
        manifest = Manifest(entry.model, hub.endpoint, _new_records(folder, before, items))
        write_manifest(folder, manifest)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return manifest


def read_revisions(texts: Iterable[str]) -> dict[str, str]:
    """Revisions by repository id, from texts of the form OWNER/NAME@REVISION."""
    revisions = {}
    for text in texts:
        repo, _, revision = text.partition("@")
        if "/" not in repo or not revision:
            raise DownloadError(f"--revision {text!r} is not of the form OWNER/NAME@REVISION")
        revisions[repo] = revision
    return revisions


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Own a model's folder for a while; explain what its disk refuses."""
    try:
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise DownloadError(f"another command is writing to {folder}; wait until it is done") from error
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "choose another folder with --models-dir"
        raise DownloadError(
            f"cannot write to {folder}: {error.strerror or error}; {remedy}, then download again to continue"
        ) from error


def _manifest_of(entry: CatalogEntry, folder: Path) -> Manifest | None:
    manifest = read_manifest(folder)
    if manifest is not None and manifest.model != entry.model:
        raise DownloadError(f"{folder} holds {manifest.model}, not {entry.model}; choose another --models-dir")
    return manifest


def _records(manifest: Manifest | None) -> tuple[RepoRecord, ...]:
    return () if manifest is None else manifest.repos


def _resolve(hub: Hub, files: Iterable[RemoteFile], revisions: Mapping[str, str]) -> dict[str, Snapshot]:
    repos = dict.fromkeys(file.repo.id for file in files)
    if unknown := revisions.keys() - repos:
        raise DownloadError(f"--revision names {', '.join(sorted(unknown))}; this model uses {', '.join(repos)}")
    return {repo: hub.resolve(repo, revisions.get(repo, DEFAULT_REVISION)) for repo in repos}


def _mixing(folder: Path, old: RepoRecord, new: Snapshot) -> str:
    return (
        f"{folder} holds {old.id} at {old.revision} and will not mix it with {new.commit}: keep it with "
        f"--revision {old.id}@{old.revision}, replace it with --update, or choose another --models-dir"
    )


def _retire_manifest(folder: Path) -> None:
    """From here until the new manifest the folder does not look complete; the old terms remain on record."""
    until = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    (folder / MANIFEST).rename(folder / f"manifest-until-{until}.json")


def _items(files: Iterable[RemoteFile], snapshots: Mapping[str, Snapshot]) -> list[_Item]:
    """The files, and with each repository those that state its terms."""
    files = list(files)
    terms = [
        RemoteFile(repo, path)
        for repo in dict.fromkeys(file.repo for file in files)
        for path in snapshots[repo.id].terms
    ]
    return [
        _Item(snapshots[file.repo.id], snapshots[file.repo.id].file(file.path), file.local)
        for file in (*terms, *files)
    ]


def _bring(hub: Hub, folder: Path, items: list[_Item], progress: Callable[[Progress], None]) -> None:
    missing = [item for item in items if not _is_here(folder, item)]
    _require_room(folder, missing)
    for number, item in enumerate(missing, 1):
        step = Progress(item.local, number, len(missing), "fetch", 0, item.file.size)
        _fetch(hub, folder, item, step, progress)


def _is_here(folder: Path, item: _Item) -> bool:
    """Whether the file is in its place. One that a neighbouring model has already is linked into it."""
    target = folder / item.local
    if item.file.matches(target):
        return True
    twins = (path for path in folder.parent.glob(f"*/{item.local}") if path != target)
    twin = next(filter(item.file.matches, twins), None)
    if twin is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(twin)
    except OSError:  # Not every file system has hard links.
        shutil.copyfile(twin, target)
    return True


def _require_room(folder: Path, items: list[_Item]) -> None:
    needed = sum(item.file.size for item in items)
    arrived = sum(path.stat().st_size for path in (folder / PARTIAL).iterdir())
    free = shutil.disk_usage(folder).free
    if needed - arrived > free:
        raise DownloadError(
            f"the download needs {(needed - arrived) / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "make room or choose another --models-dir"
        )


def _fetch(hub: Hub, folder: Path, item: _Item, step: Progress, progress: Callable[[Progress], None]) -> None:
    partial = folder / PARTIAL / item.file.key

    def received(done: int) -> None:
        progress(replace(step, done=done))

    before = hub.fetch(item.snapshot, item.file, partial, received)
    progress(replace(step, stage="check", done=step.size))
    if not item.file.matches(partial):
        if not before:
            raise _wrong(hub, item, partial)
        # What came now does not go with what was here: only all of the file can tell which of them is wrong.
        os.truncate(partial, before)
        hub.fetch_whole(item.snapshot, item.file, partial, received)
    target = folder / item.local
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)


def _wrong(hub: Hub, item: _Item, partial: Path) -> DownloadError:
    """Throw away what the hub has sent, of which nothing can be kept."""
    found = item.file.digest(partial)
    partial.unlink()
    return DownloadError(
        f"{item.local} arrived with hash {found} where {hub.endpoint} promises {item.file.key}; "
        "it was thrown away: download again and, if this repeats, do not trust that server"
    )


def _new_records(folder: Path, before: Manifest | None, items: list[_Item]) -> tuple[RepoRecord, ...]:
    """Records of what `items` brought, and of what was there before from elsewhere."""
    snapshots = {item.snapshot.repo: item.snapshot for item in items}
    kept = tuple(old for old in _records(before) if old.id not in snapshots)
    return tuple(_record(folder, before, snapshot, items) for snapshot in snapshots.values()) + kept


def _record(folder: Path, before: Manifest | None, snapshot: Snapshot, items: list[_Item]) -> RepoRecord:
    """A commit that was here before keeps its date and the files that were not asked for this time."""
    mine = [item for item in items if item.snapshot is snapshot]
    files = {item.local: _file_record(folder, item) for item in mine}
    old = before.repo(snapshot.repo) if before is not None else None
    if old is not None and old.revision == snapshot.commit:
        return replace(old, files=tuple(({file.path: file for file in old.files} | files).values()))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    name, text = _license_text(folder, snapshot, mine)
    return RepoRecord(snapshot.repo, snapshot.commit, now, snapshot.license, name, text, tuple(files.values()))


def _file_record(folder: Path, item: _Item) -> FileRecord:
    return FileRecord(item.local, item.file.size, item.file.sha256 or sha256_of(folder / item.local))


def _license_text(folder: Path, snapshot: Snapshot, items: list[_Item]) -> tuple[str, str]:
    """Name and text of the licence file or, where there is none, of the card's metadata."""
    texts = {item.file.path: folder / item.local for item in items if item.file.path in snapshot.terms}
    if snapshot.license_file is not None:
        text = texts[snapshot.license_file].read_text(encoding="utf-8", errors="replace")
        return snapshot.license_file, text
    if CARD not in texts:
        return "", ""
    card = texts[CARD].read_text(encoding="utf-8", errors="replace")
    return CARD, _front_matter(card)


def _front_matter(card: str) -> str:
    """The metadata at the head of a model card, between its two lines of dashes."""
    head, _, rest = card.partition("\n")
    return rest.partition("\n---")[0] if head.strip() == "---" else ""

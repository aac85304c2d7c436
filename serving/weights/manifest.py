"""The manifest beside a model's weights: which files, from which revision, under which terms, since when."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.errors import DownloadError
from serving.media.whole_file import write_whole

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """A downloaded file; `path` is relative to the model's folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RepoRecord:
    """What came from one repository: `revision` is a commit, `date` when it was downloaded, UTC in ISO 8601.

    `licence` is the name that the repository's card declared at that commit. `licence_text` is the text of
    `licence_file`, or the card's metadata where the repository has no licence file.
    """

    id: str
    revision: str
    date: str
    licence: str
    licence_file: str
    licence_text: str
    files: tuple[FileRecord, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything in a model's folder, from the hub at `endpoint`."""

    model: str
    endpoint: str
    repos: tuple[RepoRecord, ...]

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Of all repositories."""
        return tuple(file for repo in self.repos for file in repo.files)

    def repo(self, identity: str) -> RepoRecord | None:
        """The record of a repository, None if nothing came from it."""
        return next((repo for repo in self.repos if repo.id == identity), None)


@dataclass(frozen=True)
class Fault:
    """A file that is not as its manifest says."""

    path: str
    reason: str


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a model's folder, None where a download has not been completed."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _parse(document)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{path} is damaged ({error}); delete it and download the model again") from error


def _parse(document: dict[str, Any]) -> Manifest:
    repos = tuple(
        RepoRecord(**{**repo, "files": tuple(FileRecord(**file) for file in repo["files"])})
        for repo in document["repos"]
    )
    return Manifest(document["model"], document["endpoint"], repos)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest in place whole: a reader sees the old one or the new one."""
    write_whole(folder / MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")


def verify(folder: Path, *, full: bool = False) -> tuple[Fault, ...]:
    """Compare a folder with its manifest: the sizes of its files or, if `full`, every byte."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DownloadError(f"{folder} has no {MANIFEST}; download the model first")
    reasons = ((file.path, _reason(folder / file.path, file, full)) for file in manifest.files)
    return tuple(Fault(path, reason) for path, reason in reasons if reason is not None)


def _reason(path: Path, file: FileRecord, full: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file.size:
        return f"has {size} bytes, not {file.size}"
    if full and (digest := sha256_of(path)) != file.sha256:
        return f"has sha256 {digest}, not {file.sha256}"
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

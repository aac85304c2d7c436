"""The model hub over HTTP: what a repository holds at one commit, and the bytes of its files.

huggingface_hub lists, names and authorises; the transfer is ours, because hf_hub_download no longer resumes:
since 1.18 each call writes to a new temporary file and deletes it on failure. Nor does Xet, its other way to
transfer, continue a file. The plain /resolve address serves byte ranges of every file, Xet-stored ones too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, ModelInfo, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # Public, but not in __all__.

from serving.errors import DownloadError
from serving.weights.manifest import sha256_of
from serving.weights.transfer import Transfer, Untrusted

LICENSE_FILES = ("license", "license.txt", "license.md")
CARD = "README.md"
LIBRARY = "longtake"
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

SIGN_IN = "sign in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubFile:
    """A file at one commit. Large files are known by their sha256, small ones by their git blob id (sha1)."""

    path: str
    size: int
    sha256: str | None
    blob_id: str | None

    @property
    def key(self) -> str:
        """A name for these bytes and no others."""
        return self.sha256 or self.blob_id or ""

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has exactly these bytes."""
        return path.is_file() and path.stat().st_size == self.size and self.digest(path) == self.key

    def digest(self, path: Path) -> str:
        """Of the file at `path`, in the kind that `key` is."""
        return sha256_of(path) if self.sha256 else _git_blob_id(path)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit. `license` is what its card declares there."""

    repo: str
    commit: str
    license: str
    files: tuple[HubFile, ...]

    @property
    def license_file(self) -> str | None:
        """The licence's text, if the repository has it at its root."""
        return next((file.path for file in self.files if file.path.lower() in LICENSE_FILES), None)

    @property
    def terms(self) -> tuple[str, ...]:
        """The files that say under which terms the others come: the licence and the card."""
        card = (file.path for file in self.files if file.path == CARD)
        return (*filter(None, [self.license_file]), *card)

    def file(self, path: str) -> HubFile:
        """The file at `path`; DownloadError if the repository has none or cannot say what its bytes are."""
        found = next((file for file in self.files if file.path == path), None)
        if found is None:
            raise DownloadError(
                f"{self.repo} has no file {path} at revision {self.commit}; choose another with --revision"
            )
        if not _HASH.fullmatch(found.key):
            raise DownloadError(f"the hub gives no hash of {path} in {self.repo}, so it cannot be checked")
        return found


class Hub:
    """The hub at one address. Without `endpoint` and `token` the user's own huggingface_hub settings hold."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY)
        self._token = token

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return self._api.endpoint

    def resolve(self, repo: str, revision: str) -> Snapshot:
        """What `repo` holds at a branch, tag or commit, with the commit that it is now."""
        with _explained(repo, revision, self.endpoint):
            try:
                info = self._api.model_info(repo, revision=revision, files_metadata=True, timeout=30.0)
            except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DownloadError(
                    f"{self.endpoint} does not answer as a model hub; check HF_ENDPOINT"
                ) from error
        if info.sha is None:
            raise DownloadError(f"{self.endpoint} names no commit for {repo} at {revision}; check HF_ENDPOINT")
        files = tuple(_hub_file(sibling) for sibling in info.siblings or ())
        return Snapshot(repo, info.sha, _license(info), files)

    def fetch(self, snapshot: Snapshot, file: HubFile, partial: Path, received: Callable[[int], None]) -> int:
        """Bring `partial` to the file's length, continuing behind the bytes it has.

        `received` is told the length after each piece. What has arrived stays in `partial` if this fails. Returns
        how many of the bytes were here before: whether they and the others are the file, its hash must say.
        """
        transfer = self._transfer(snapshot, file, partial, received)
        with _explained(snapshot.repo, snapshot.commit, self.endpoint):
            transfer.run()
        return transfer.trusted

    def fetch_whole(
        self, snapshot: Snapshot, file: HubFile, partial: Path, received: Callable[[int], None]
    ) -> None:
        """Put the file in the place of `partial`, which stays what it is if that fails or the hash is wrong."""
        with _explained(snapshot.repo, snapshot.commit, self.endpoint):
            self._transfer(snapshot, file, partial, received).fetch_whole()

    def _transfer(
        self, snapshot: Snapshot, file: HubFile, partial: Path, received: Callable[[int], None]
    ) -> Transfer:
        url = hf_hub_url(snapshot.repo, file.path, revision=snapshot.commit, endpoint=self.endpoint)
        return Transfer(url, build_hf_headers(token=self._token, library_name=LIBRARY), file, partial, received)


@contextmanager
def _explained(repo: str, revision: str, endpoint: str) -> Iterator[None]:
    """Turn what can go wrong between here and the hub into one sentence with its remedy."""
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(f"{repo} is gated: accept its terms at {endpoint}/{repo}, then {SIGN_IN}") from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no revision {revision!r}; choose another with --revision") from error
    except RemoteEntryNotFoundError as error:
        raise DownloadError(f"{error.response.url} does not exist; choose another --revision of {repo}") from error
    except HfHubHTTPError as error:
        raise DownloadError(_refusal(error, repo, endpoint)) from error
    except Untrusted as error:
        raise DownloadError(
            f"{error}; what was here is kept: check the network and HF_ENDPOINT, then download again"
        ) from error
    except (httpx2.RequestError, OfflineModeIsEnabled) as error:
        raise DownloadError(
            f"cannot reach {endpoint} for {repo} ({error}); check the network, then download again to continue"
        ) from error


def _refusal(error: HfHubHTTPError, repo: str, endpoint: str) -> str:
    status = error.response.status_code
    if status in (401, 404):  # The hub answers 401 for what does not exist, too.
        return f"{endpoint} shows no repository {repo}; if it is private, {SIGN_IN}"
    remedy = SIGN_IN if status == 403 else "try again later; what has arrived is kept"
    return f"the hub answered {status} for {repo} at {error.response.url}; {remedy}"


def _hub_file(sibling: RepoSibling) -> HubFile:
    lfs = sibling.lfs
    if lfs is not None:
        return HubFile(sibling.rfilename, lfs.size, lfs.sha256, sibling.blob_id)
    return HubFile(sibling.rfilename, sibling.size or 0, None, sibling.blob_id)


def _license(info: ModelInfo) -> str:
    card = info.card_data
    if card is None or not card.license:
        return "not declared"
    if card.license_name is None:
        return str(card.license)
    return f"{card.license_name} ({card.license_link})" if card.license_link else str(card.license_name)


def _git_blob_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

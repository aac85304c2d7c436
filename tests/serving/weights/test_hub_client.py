from __future__ import annotations

import errno
import hashlib
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import close_session

import serving.weights.transfer
from serving.errors import DownloadError, ServingError
from serving.weights.catalog import CatalogEntry, Part, RemoteFile, Repo, Role
from serving.weights.downloader import Progress, download, read_revisions
from serving.weights.manifest import Manifest, read_manifest, verify
from tests.serving.weights.hub_server import FakeHub, FakeRepo, serve

FIRST, SECOND = "1" * 40, "2" * 40
BASE = Repo("maker/base", "apache-2.0")
MODEL = Repo("lab/model", "see the model card")
TINY = Repo("lab/tiny", "see the model card")
ENTRY = CatalogEntry(
    "toy",
    "a toy",
    (
        Part(Role.TRANSFORMER, (RemoteFile(MODEL, "models/toy.pt"),)),
        Part(Role.CODEC, (RemoteFile(BASE, "vae.pth"),)),
        Part(Role.TOKENIZER, (RemoteFile(BASE, "tok/tokenizer.json"),)),
        Part(Role.TINY_CODEC, (RemoteFile(TINY, "tiny.pth"),), optional=True),
    ),
)
WEIGHTS = bytes(range(256)) * 1024
CARD = "---\nlicense: other\nlicense_name: lab-terms\n---\n# The model\n"


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    """Nothing but 127.0.0.1 may be reached, and that without a detour; nothing waits."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] == "127.0.0.1", f"a test reached for {address}"
        connect(self, address)

    close_session()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(serving.weights.transfer, "RETRY_PAUSE_S", 0.0)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield
        close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """Two repositories, one with a licence file and one with a card only, and an optional third."""
    base = {"LICENSE.txt": b"Apache License\n", "README.md": b"# base", "vae.pth": WEIGHTS[::-1]}
    base["tok/tokenizer.json"] = b'{"model": 1}'
    model = {"README.md": CARD.encode(), "models/toy.pt": WEIGHTS, "unused.pt": b"not wanted"}
    terms = {"license": "other", "license_name": "lab-terms", "license_link": "https://lab/terms"}
    repos = {
        "maker/base": FakeRepo({FIRST: base}, {"license": "apache-2.0"}),
        "lab/model": FakeRepo({FIRST: model}, terms),
        "lab/tiny": FakeRepo({FIRST: {"tiny.pth": b"tiny"}}),
    }
    with serve(FakeHub(repos)) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "toy"


def move_on(hub: FakeHub) -> None:
    """The model's authors push new weights."""
    repo = hub.repos["lab/model"]
    repo.commits[SECOND] = {**repo.commits[FIRST], "models/toy.pt": WEIGHTS[1:]}


def interrupt(progress: Progress) -> None:
    """Ctrl-C once half of the model's weights are there."""
    if progress.path == "model/models/toy.pt" and progress.done >= len(WEIGHTS) // 2:
        raise KeyboardInterrupt


def test_a_download_brings_every_file_of_the_model_and_no_other(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    assert (folder / "model/models/toy.pt").read_bytes() == WEIGHTS
    assert (folder / "base/tok/tokenizer.json").read_bytes() == b'{"model": 1}'
    assert not hub.asked_for("unused.pt")
    assert not hub.asked_for("tiny.pth")
    assert verify(folder, full=True) == ()


def test_the_catalog_knows_where_the_files_of_a_role_lie(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    assert [path.read_bytes() for path in ENTRY.locate(folder, Role.CODEC)] == [WEIGHTS[::-1]]


def test_an_optional_part_comes_when_asked_for_and_stays_on_record(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address, extras=[Role.TINY_CODEC])
    again = download(ENTRY, folder, endpoint=hub.address)
    assert "tiny/tiny.pth" in [file.path for file in again.files]


def test_the_manifest_lists_every_file_with_its_size_and_sha256(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    written = json.loads((folder / "manifest.json").read_text())
    files = {file["path"]: file for repo in written["repos"] for file in repo["files"]}
    assert set(files) == {
        "model/models/toy.pt", "model/README.md", "base/vae.pth", "base/tok/tokenizer.json", "base/LICENSE.txt",
        "base/README.md",
    }  # fmt: skip
    for path, file in files.items():
        data = (folder / path).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_manifest_records_commit_and_date_and_where_from(hub: FakeHub, folder: Path) -> None:
    manifest = download(ENTRY, folder, endpoint=hub.address)
    assert manifest == read_manifest(folder)
    assert (manifest.model, manifest.endpoint) == ("toy", hub.address)
    assert {repo.id: repo.revision for repo in manifest.repos} == {"lab/model": FIRST, "maker/base": FIRST}
    date = datetime.fromisoformat(manifest.repos[0].date)
    assert date.utcoffset() == UTC.utcoffset(None)
    assert abs((datetime.now(UTC) - date).total_seconds()) < 60


def test_the_manifest_records_the_terms_as_the_license_file_has_them(hub: FakeHub, folder: Path) -> None:
    record = download(ENTRY, folder, endpoint=hub.address).repo("maker/base")
    assert record is not None
    assert (record.licence, record.licence_file) == ("apache-2.0", "LICENSE.txt")
    assert record.licence_text == "Apache License\n"


def test_without_a_license_file_the_manifest_records_what_the_card_declares(hub: FakeHub, folder: Path) -> None:
    record = download(ENTRY, folder, endpoint=hub.address).repo("lab/model")
    assert record is not None
    assert (record.licence, record.licence_file) == ("lab-terms (https://lab/terms)", "README.md")
    assert record.licence_text == "license: other\nlicense_name: lab-terms"


def test_a_repository_that_declares_nothing_is_recorded_as_such(hub: FakeHub, folder: Path) -> None:
    record = download(ENTRY, folder, endpoint=hub.address, extras=[Role.TINY_CODEC]).repo("lab/tiny")
    assert record is not None
    assert (record.licence, record.licence_text) == ("not declared", "")


def test_a_cut_connection_is_continued_where_it_broke(hub: FakeHub, folder: Path) -> None:
    hub.cut["models/toy.pt"] = [100_000, 50_000]
    download(ENTRY, folder, endpoint=hub.address)
    ranges = [request.range for request in hub.asked_for("toy.pt") if request.storage]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert (folder / "model/models/toy.pt").read_bytes() == WEIGHTS


def test_an_interrupted_download_goes_on_where_it_was(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        download(ENTRY, folder, endpoint=hub.address, progress=interrupt)
    assert read_manifest(folder) is None
    hub.requests.clear()
    download(ENTRY, folder, endpoint=hub.address)
    (request,) = [request for request in hub.asked_for("toy.pt") if request.storage]
    assert request.range is not None
    assert int(request.range.removeprefix("bytes=").removesuffix("-")) >= len(WEIGHTS) // 2
    assert (folder / "model/models/toy.pt").read_bytes() == WEIGHTS


def test_files_that_are_whole_are_not_fetched_again(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        download(ENTRY, folder, endpoint=hub.address, progress=interrupt)
    hub.requests.clear()
    download(ENTRY, folder, endpoint=hub.address)
    assert not hub.asked_for("LICENSE.txt")


def test_a_server_without_ranges_is_downloaded_from_all_the_same(hub: FakeHub, folder: Path) -> None:
    hub.ranges, hub.cut["models/toy.pt"] = False, [100_000]
    download(ENTRY, folder, endpoint=hub.address)
    assert (folder / "model/models/toy.pt").read_bytes() == WEIGHTS


def test_a_file_that_never_gets_further_is_given_up(hub: FakeHub, folder: Path) -> None:
    hub.cut["models/toy.pt"] = [1000] + [0] * 50
    with pytest.raises(DownloadError, match=r"check the network, then download again to continue"):
        download(ENTRY, folder, endpoint=hub.address)
    assert len(hub.cut["models/toy.pt"]) == 50 - serving.weights.transfer.TRIES


@pytest.mark.parametrize("path", ["models/toy.pt", "tok/tokenizer.json"])
def test_wrong_bytes_are_refused_and_thrown_away(hub: FakeHub, folder: Path, path: str) -> None:
    right = {**hub.repos["lab/model"].commits[FIRST], **hub.repos["maker/base"].commits[FIRST]}[path]
    hub.wrong[path] = right[:-1] + b"!"
    with pytest.raises(DownloadError, match=f"{path} arrived with hash .* promises .* thrown away"):
        download(ENTRY, folder, endpoint=hub.address)
    assert read_manifest(folder) is None
    assert not list(folder.rglob(path))
    assert not list((folder / ".partial").iterdir())


def test_more_bytes_than_promised_are_refused(hub: FakeHub, folder: Path) -> None:
    hub.wrong["models/toy.pt"] = WEIGHTS * 2
    problem = f"sends {2 * len(WEIGHTS)} bytes; models/toy.pt has {len(WEIGHTS)}; what was here is kept"
    with pytest.raises(DownloadError, match=problem):
        download(ENTRY, folder, endpoint=hub.address)


def test_a_second_download_keeps_the_date_and_the_terms_of_the_first(hub: FakeHub, folder: Path) -> None:
    first = download(ENTRY, folder, endpoint=hub.address)
    text = (folder / "manifest.json").read_text().replace(first.repos[0].date, "2020-02-02T00:00:00+00:00")
    (folder / "manifest.json").write_text(text)
    assert download(ENTRY, folder, endpoint=hub.address).repos[0].date == "2020-02-02T00:00:00+00:00"


def test_a_damaged_file_is_found_and_brought_anew(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    (folder / "model/models/toy.pt").write_bytes(WEIGHTS[::-1])
    (folder / "base/vae.pth").unlink()
    assert [fault.path for fault in verify(folder)] == ["base/vae.pth"]
    assert {fault.path for fault in verify(folder, full=True)} == {"base/vae.pth", "model/models/toy.pt"}
    download(ENTRY, folder, endpoint=hub.address)
    assert verify(folder, full=True) == ()


def test_a_folder_does_not_mix_revisions(hub: FakeHub, folder: Path) -> None:
    before = download(ENTRY, folder, endpoint=hub.address)
    move_on(hub)
    with pytest.raises(DownloadError, match=f"--revision lab/model@{FIRST}, replace it with --update"):
        download(ENTRY, folder, endpoint=hub.address)
    assert read_manifest(folder) == before
    assert verify(folder, full=True) == ()


def test_a_named_revision_stays_when_the_branch_moves_on(hub: FakeHub, folder: Path) -> None:
    before = download(ENTRY, folder, endpoint=hub.address)
    move_on(hub)
    assert download(ENTRY, folder, endpoint=hub.address, revisions={"lab/model": FIRST}) == before


def test_an_update_replaces_the_files_and_keeps_the_old_terms_on_record(hub: FakeHub, folder: Path) -> None:
    before = download(ENTRY, folder, endpoint=hub.address)
    move_on(hub)
    after = download(ENTRY, folder, endpoint=hub.address, update=True)
    assert [record.revision for record in (after.repo("lab/model"), after.repo("maker/base")) if record] == [
        SECOND,
        FIRST,
    ]
    assert (folder / "model/models/toy.pt").read_bytes() == WEIGHTS[1:]
    (kept,) = folder.glob("manifest-until-*.json")
    assert json.loads(kept.read_text())["repos"][0]["revision"] == before.repos[0].revision


def test_an_update_that_fails_does_not_look_complete(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    move_on(hub)
    hub.wrong["models/toy.pt"] = WEIGHTS[1:-1] + b"!"
    with pytest.raises(DownloadError):
        download(ENTRY, folder, endpoint=hub.address, update=True)
    assert read_manifest(folder) is None


def test_an_update_to_a_revision_without_the_files_changes_nothing(hub: FakeHub, folder: Path) -> None:
    before = download(ENTRY, folder, endpoint=hub.address)
    hub.repos["lab/model"].commits[SECOND] = {}
    with pytest.raises(DownloadError, match=f"has no file models/toy.pt at revision {SECOND}"):
        download(ENTRY, folder, endpoint=hub.address, update=True)
    assert read_manifest(folder) == before


def test_a_gated_repository_says_where_to_accept_its_terms(hub: FakeHub, folder: Path) -> None:
    hub.repos["lab/model"].gated = True
    with pytest.raises(DownloadError, match=f"gated: accept its terms at {hub.address}/lab/model"):
        download(ENTRY, folder, endpoint=hub.address)


def test_a_token_opens_a_gated_repository_and_is_not_shown_to_the_storage(hub: FakeHub, folder: Path) -> None:
    hub.repos["lab/model"].gated = True
    download(ENTRY, folder, endpoint=hub.address, token="hf_secret")
    shown = {request.storage: request.authorization for request in hub.asked_for("toy.pt")}
    assert shown == {False: "Bearer hf_secret", True: None}


def test_a_missing_file_names_repository_file_and_revision(hub: FakeHub, folder: Path) -> None:
    del hub.repos["lab/model"].commits[FIRST]["models/toy.pt"]
    with pytest.raises(DownloadError, match=f"lab/model has no file models/toy.pt at revision {FIRST}"):
        download(ENTRY, folder, endpoint=hub.address)


@pytest.mark.parametrize(("status", "error"), [(401, ""), (401, "RepoNotFound"), (404, "RepoNotFound")])
def test_an_unknown_repository_is_named(hub: FakeHub, folder: Path, status: int, error: str) -> None:
    hub.status, hub.error = status, error
    with pytest.raises(ServingError, match="shows no repository lab/model; if it is private"):
        download(ENTRY, folder, endpoint=hub.address)


def test_an_unknown_revision_is_named(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(DownloadError, match="lab/model has no revision 'v9'; choose another with --revision"):
        download(ENTRY, folder, endpoint=hub.address, revisions={"lab/model": "v9"})


def test_a_revision_of_a_repository_that_is_not_used_is_refused(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(DownloadError, match="names lab/other; this model uses lab/model, maker/base"):
        download(ENTRY, folder, endpoint=hub.address, revisions={"lab/other": FIRST})


def test_revisions_are_read_as_the_refusal_writes_them() -> None:
    assert read_revisions(["lab/model@v1", f"maker/base@{FIRST}"]) == {"lab/model": "v1", "maker/base": FIRST}


@pytest.mark.parametrize("text", ["v1", "model@v1", "lab/model", "lab/model@"])
def test_a_revision_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(DownloadError, match=f"'{text}' is not of the form OWNER/NAME@REVISION"):
        read_revisions([text])


@pytest.mark.parametrize(("status", "remedy"), [(403, "set HF_TOKEN"), (503, "try again later")])
def test_a_refusing_hub_is_quoted(hub: FakeHub, folder: Path, status: int, remedy: str) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=f"answered {status} for lab/model .*{remedy}"):
        download(ENTRY, folder, endpoint=hub.address)


def test_a_page_that_is_no_hub_is_reported(hub: FakeHub, folder: Path) -> None:
    hub.status = 200
    with pytest.raises(DownloadError, match="does not answer as a model hub; check HF_ENDPOINT"):
        download(ENTRY, folder, endpoint=hub.address)


def test_a_hub_that_is_not_there_is_reported(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot reach http://127.0.0.1:9 for lab/model .*check the network"):
        download(ENTRY, folder, endpoint="http://127.0.0.1:9")


def test_a_disk_without_room_is_told_before_the_first_byte(hub: FakeHub, folder: Path) -> None:
    hub.sizes["models/toy.pt"] = 10**18
    with pytest.raises(DownloadError, match=r"needs 1000000000.0 GB and .* free; make room"):
        download(ENTRY, folder, endpoint=hub.address)
    assert not hub.asked_for("LICENSE.txt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_reported(hub: FakeHub, folder: Path) -> None:
    (folder / ".partial").mkdir(parents=True)
    (folder / ".partial" / hashlib.sha256(WEIGHTS).hexdigest()).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="No space left on device; make room") as caught:
        download(ENTRY, folder, endpoint=hub.address)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_two_downloads_do_not_write_to_one_folder(hub: FakeHub, folder: Path) -> None:
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(DownloadError, match="another command is writing"):
        download(ENTRY, folder, endpoint=hub.address)


def test_a_folder_of_another_model_is_left_alone(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    other = CatalogEntry("other", "another toy", ENTRY.parts)
    with pytest.raises(DownloadError, match="holds toy, not other"):
        download(other, folder, endpoint=hub.address)


def test_a_file_that_two_models_share_is_fetched_and_stored_once(hub: FakeHub, folder: Path) -> None:
    download(ENTRY, folder, endpoint=hub.address)
    hub.requests.clear()
    other = folder.parent / "other"
    download(CatalogEntry("other", "another toy", ENTRY.parts), other, endpoint=hub.address)
    assert not hub.asked_for("toy.pt")
    assert (other / "model/models/toy.pt").samefile(folder / "model/models/toy.pt")
    assert verify(other, full=True) == ()


def test_without_hard_links_a_shared_file_is_copied(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    download(ENTRY, folder, endpoint=hub.address)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    download(CatalogEntry("other", "another toy", ENTRY.parts), folder.parent / "other", endpoint=hub.address)
    assert verify(folder.parent / "other", full=True) == ()


def test_progress_runs_through_every_file_to_its_end(hub: FakeHub, folder: Path) -> None:
    steps: list[Progress] = []
    download(ENTRY, folder, endpoint=hub.address, progress=steps.append)
    checked = [step for step in steps if step.stage == "check"]
    assert [(step.number, step.files) for step in checked] == [(number, 6) for number in range(1, 7)]
    large = [step.done for step in steps if step.path == "model/models/toy.pt"]
    assert large == sorted(large)
    assert large[-1] == len(WEIGHTS)


def test_a_damaged_manifest_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"model": "toy"')
    with pytest.raises(DownloadError, match=r"manifest.json is damaged"):
        read_manifest(folder)


def test_a_folder_without_manifest_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"has no manifest.json; download the model first"):
        verify(tmp_path)


def test_a_manifest_finds_its_repositories() -> None:
    assert Manifest("toy", "", ()).repo("lab/model") is None

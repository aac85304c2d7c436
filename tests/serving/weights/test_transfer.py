"""A download of which nearly all is here already, from servers that answer as they like."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

import serving.weights.transfer
from serving.errors import DownloadError
from serving.weights.catalog import CatalogEntry, Part, RemoteFile, Repo, Role
from serving.weights.downloader import download
from tests.serving.weights.hub_server import FakeHub, FakeRepo, OddAnswer, serve

DATA = hashlib.shake_256(b"weights").digest(200_000)
OTHER = hashlib.shake_256(b"other weights").digest(len(DATA))
HERE, SIZE = 198_000, len(DATA)
SHA = hashlib.sha256(DATA).hexdigest()
ENTRY = CatalogEntry("toy", "a toy", (Part(Role.TRANSFORMER, (RemoteFile(Repo("lab/m", "x"), "w.pt"),)),))
REST = DATA[HERE:]


def span(first: int, last: int, size: int | str = SIZE) -> dict[str, str]:
    return {"Content-Range": f"bytes {first}-{last}/{size}"}


PAGE = OddAnswer(200, b"<html>sign in</html>" * 50, {"Content-Type": "text/html; charset=utf-8"})
ODD = {
    "416": OddAnswer(416),
    "a page": PAGE,
    "a page as the range": OddAnswer(206, PAGE.body, {**span(HERE, SIZE - 1), **PAGE.headers}),
    "a page without a type": OddAnswer(200, PAGE.body),
    "a page that claims the length": OddAnswer(200, PAGE.body, length=SIZE),
    "a range from nought": OddAnswer(206, DATA, span(0, SIZE - 1)),
    "a range before": OddAnswer(206, DATA[HERE - 9 :], span(HERE - 9, SIZE - 1)),
    "a range beyond": OddAnswer(206, REST + b"more", span(HERE, SIZE + 3)),
    "a range of another file": OddAnswer(206, OTHER[HERE:], span(HERE, SIZE - 1, SIZE + 9)),
    "no range": OddAnswer(206, REST),
    "a range in words": OddAnswer(206, REST, {"Content-Range": "bytes all/of it"}),
    "several ranges": OddAnswer(206, REST, {"Content-Type": "multipart/byteranges; boundary=x"}),
    "a compressed range": OddAnswer(
        206, gzip.compress(REST), {**span(HERE, SIZE - 1), "Content-Encoding": "gzip"}
    ),
    "a strange encoding": OddAnswer(200, REST, {"Content-Encoding": "rot13"}),
    "a length that lies": OddAnswer(206, REST, span(HERE, SIZE - 1), length=len(REST) + 5),
    "too short a range": OddAnswer(206, REST[:9], span(HERE, SIZE - 1), length=len(REST)),
    "another file whole": OddAnswer(200, OTHER),
    "nothing": OddAnswer(204),
    "500": OddAnswer(500),
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(serving.weights.transfer, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield
    close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({"lab/m": FakeRepo({"1" * 40: {"w.pt": DATA}})})) as running:
        yield running


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    path = tmp_path / "toy" / ".partial" / SHA
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:HERE])
    return path


def fetch(hub: FakeHub, partial: Path) -> bytes:
    folder = partial.parents[1]
    download(ENTRY, folder, endpoint=hub.address)
    assert not partial.parent.exists()
    return (folder / "m/w.pt").read_bytes()


def asked(hub: FakeHub) -> list[str | None]:
    """The ranges that reached the storage."""
    return [request.range for request in hub.asked_for("w.pt") if request.storage]


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_odd_answer_costs_nothing_of_what_is_here(hub: FakeHub, partial: Path, odd: OddAnswer) -> None:
    hub.odd["w.pt"] = [odd]
    assert fetch(hub, partial) == DATA
    assert None not in asked(hub)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_answers_without_end_leave_what_is_here_as_it_is(hub: FakeHub, partial: Path, odd: OddAnswer) -> None:
    hub.odd["w.pt"] = [odd] * 100
    with pytest.raises(DownloadError):
        fetch(hub, partial)
    kept = partial.read_bytes()
    assert DATA.startswith(kept)
    assert len(kept) >= HERE
    assert asked(hub).count(None) <= 1
    assert [path.name for path in partial.parent.iterdir()] == [SHA]
    hub.odd["w.pt"].clear()
    assert fetch(hub, partial) == DATA


@pytest.mark.parametrize(
    "name", ["416", "a range from nought", "no range", "several ranges", "a compressed range"]
)
def test_a_server_without_ranges_is_asked_for_the_whole_file_once(hub: FakeHub, partial: Path, name: str) -> None:
    hub.odd["w.pt"] = [ODD[name], ODD[name], None]
    assert fetch(hub, partial) == DATA
    assert asked(hub) == [f"bytes={HERE}-", f"bytes={HERE}-", None]


def test_a_file_that_changed_on_the_server_is_found_out_and_what_is_here_is_kept(
    hub: FakeHub, partial: Path
) -> None:
    hub.wrong["w.pt"] = OTHER
    with pytest.raises(
        DownloadError, match=r"sends another file than the w\.pt that is promised; what was here is kept"
    ):
        fetch(hub, partial)
    assert partial.read_bytes() == DATA[:HERE]
    assert asked(hub) == [f"bytes={HERE}-", None]
    hub.wrong.clear()
    assert fetch(hub, partial) == DATA


def test_a_file_that_changes_between_two_answers_costs_the_second_only(hub: FakeHub, partial: Path) -> None:
    partial.unlink()
    first = OddAnswer(200, DATA[:150_000], {"ETag": '"one"'}, length=SIZE)
    second = OddAnswer(206, OTHER[150_000:], {**span(150_000, SIZE - 1), "ETag": '"two"'})
    hub.odd["w.pt"] = [first, second, PAGE]
    with pytest.raises(DownloadError, match=r"a web page instead of w\.pt"):
        fetch(hub, partial)
    assert partial.read_bytes() == DATA[:150_000]
    assert fetch(hub, partial) == DATA


def test_a_part_that_was_wrong_is_replaced_by_the_whole_file(hub: FakeHub, partial: Path) -> None:
    partial.write_bytes(OTHER[:HERE])
    assert fetch(hub, partial) == DATA
    assert asked(hub) == [f"bytes={HERE}-", None]


@pytest.mark.parametrize("content", [OTHER, OTHER + b"more"], ids=["of the right length", "too long"])
def test_a_part_that_is_as_long_as_the_file_and_wrong_is_no_part(
    hub: FakeHub, partial: Path, content: bytes
) -> None:
    partial.write_bytes(content)
    assert fetch(hub, partial) == DATA
    assert asked(hub) == [None]


def test_a_part_with_bytes_behind_its_end_is_the_file_and_nothing_is_asked_for(
    hub: FakeHub, partial: Path
) -> None:
    partial.write_bytes(DATA + b"more")
    assert fetch(hub, partial) == DATA
    assert asked(hub) == []


def test_a_text_without_a_length_is_not_taken_for_the_beginning_of_weights(hub: FakeHub, partial: Path) -> None:
    partial.unlink()
    hub.odd["w.pt"] = [OddAnswer(200, b"sign in", {"Content-Type": "text/plain", "Connection": "close"})]
    assert fetch(hub, partial) == DATA
    assert asked(hub) == [None, None]


def test_a_whole_file_that_breaks_off_behind_what_is_here_takes_its_place(hub: FakeHub, partial: Path) -> None:
    partial.write_bytes(DATA[:1000])
    hub.odd["w.pt"] = [OddAnswer(200, DATA[:150_000], length=SIZE)]
    assert fetch(hub, partial) == DATA
    assert asked(hub) == ["bytes=1000-", "bytes=150000-"]


def test_a_compressed_file_is_taken_if_it_is_the_right_one(hub: FakeHub, partial: Path) -> None:
    partial.unlink()
    hub.odd["w.pt"] = [OddAnswer(200, gzip.compress(DATA), {"Content-Encoding": "gzip"})]
    assert fetch(hub, partial) == DATA


def test_a_range_in_pieces_is_put_together(hub: FakeHub, partial: Path) -> None:
    hub.odd["w.pt"] = [OddAnswer(206, REST[:500], span(HERE, HERE + 499, "*"))]
    assert fetch(hub, partial) == DATA
    assert asked(hub) == [f"bytes={HERE}-", f"bytes={HERE + 500}-"]


def test_a_token_is_not_sent_along_to_another_host(hub: FakeHub, partial: Path) -> None:
    download(ENTRY, partial.parents[1], endpoint=hub.address, token="hf_secret")
    shown = {request.storage: request.authorization for request in hub.asked_for("w.pt")}
    assert shown == {False: "Bearer hf_secret", True: None}


@pytest.mark.parametrize("sha", ["../../../evil", "f" * 63, "Z" * 64])
def test_a_hash_that_is_none_is_no_name_for_a_file(hub: FakeHub, partial: Path, sha: str) -> None:
    hub.hashes["w.pt"] = sha
    with pytest.raises(DownloadError, match=r"gives no hash of w\.pt"):
        fetch(hub, partial)

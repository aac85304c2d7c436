from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.cli.main import main
from serving.client.blocking import Client, LoopThread
from tests.serving.client.test_blocking import enter, leave
from tests.serving.fake_sessions import FakeServer, serving


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server."""
    thread = LoopThread()
    running = serving(FakeServer())
    yield thread.run(enter(running))
    thread.run(leave(running))
    thread.stop()


@pytest.fixture
def name(server: str) -> str:
    """A recording on it."""
    with Client(server) as client:
        session = client.create()
        client.start_recording(session.id)
        return client.stop_recording(session.id).name


def test_recordings_are_listed(server: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recordings", "list", "--server", server]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["name", "session"]
    assert row.startswith(name)


def test_a_recording_is_downloaded_whole(server: str, name: str, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    assert main(["recordings", "download", name, "-o", str(film), "--server", server]) == 0
    assert film.stat().st_size == 400_000
    assert list(tmp_path.iterdir()) == [film]


def test_what_cannot_be_downloaded_leaves_an_earlier_file_alone(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = tmp_path / "film.mp4"
    film.write_text("an earlier one")
    assert main(["recordings", "download", "nothing", "-o", str(film), "--server", server]) == 2
    assert "there is no recording nothing" in capsys.readouterr().err
    assert film.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [film]


def test_a_recording_is_deleted(server: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recordings", "delete", name, "--server", server]) == 0
    assert main(["recordings", "delete", name, "--server", server]) == 2
    assert "there is no recording" in capsys.readouterr().err

"""`longtake play` and `longtake sessions` against a running server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from serving.cli.main import main
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import Server
from tests.serving.live.scenes import NIGHT, NOON, create, start

Stub = sessions_pb2_grpc.SessionsStub

TIMELINE = f"""
version: 1
seed: 11
seconds: 3
cues:
  - frame: 0
    prompt: {NOON}
  - frame: 20
    prompt: {NIGHT}
"""


@pytest.fixture
def timeline(tmp_path: Path) -> Path:
    path = tmp_path / "timeline.yaml"
    path.write_text(TIMELINE)
    return path


def pictures(film: Path) -> np.ndarray:
    with av.open(str(film)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_played_timeline_is_the_film_that_generate_makes(
    server: Server, stub: Stub, timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played, made = tmp_path / "played.mp4", tmp_path / "made.mp4"
    assert main(["play", str(timeline), "-o", str(played), "--server", server.address]) == 0
    said = capsys.readouterr().err
    assert f"frame 21: {NIGHT}" in said
    assert "57 frames, none missing and none twice" in said
    assert main(["generate", str(timeline), "-o", str(made), "--threads", "1"]) == 0
    np.testing.assert_array_equal(pictures(played), pictures(made))
    facts, wanted = (json.loads(film.with_suffix(".json").read_text()) for film in (played, made))
    assert {**facts, "film": "made.mp4"} == wanted
    assert main(["generate", str(played), "-o", str(tmp_path / "again.mp4")]) == 0
    assert (tmp_path / "again.mp4").read_bytes() == played.read_bytes()
    assert not stub.ListSessions(pb.ListSessionsRequest()).sessions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_film_that_is_stopped_is_whole_and_its_session_ends(
    server: Server, stub: Stub, timeline: Path, tmp_path: Path, number: signal.Signals
) -> None:
    film = tmp_path / "film.mp4"
    options = ["--server", server.address, "--seconds", "600", "--fps", "16"]
    command = [sys.executable, "-m", "serving.cli.main", "play", str(timeline), "-o", str(film), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("frame 33/"):
            pass
        process.send_signal(number)
        process.stderr.read()
    assert process.returncode == 130
    facts = json.loads(film.with_suffix(".json").read_text())
    assert (facts["frames_made"], facts["complete"]) == (len(pictures(film)), False)
    assert [cue["frame"] for cue in facts["cues"]] == [0, 21]
    assert not stub.ListSessions(pb.ListSessionsRequest()).sessions


def test_a_prompt_of_which_not_all_is_read_is_pointed_out(
    server: Server, stub: Stub, timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline.write_text(TIMELINE.replace(NIGHT, f"{NIGHT} " * 60))
    assert main(["play", str(timeline), "-o", str(tmp_path / "played.mp4"), "--server", server.address]) == 0
    said = capsys.readouterr().err
    assert re.search(r"frame 21: .*\(too long: its last \d+ tokens are not read\)", said)
    assert len(re.findall("too long", said)) == 1


def test_playing_is_refused_in_words(server: Server, timeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", str(timeline), "-o", "film.webm", "--server", server.address]) == 2
    assert "film.webm does not end in .mp4" in capsys.readouterr().err
    assert main(["play", str(timeline), "--model", "none", "--server", server.address]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["play", str(timeline), "--server", "127.0.0.1:1"]) == 2
    assert "127.0.0.1:1 does not answer" in capsys.readouterr().err


def test_sessions_are_listed_watched_and_stopped(
    server: Server, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    session = create(stub)
    start(stub, session)
    assert main(["sessions", "list", "--server", server.address]) == 0
    listed = capsys.readouterr().out
    assert session.id in listed
    assert "running" in listed
    stopping = threading.Timer(1.0, stub.DeleteSession, [pb.DeleteSessionRequest(session_id=session.id)])
    stopping.start()
    assert main(["sessions", "watch", session.id[:8], "--server", server.address]) == 0
    watched = capsys.readouterr().out.splitlines()
    assert watched[0].startswith("running: next frame ")
    assert watched[-2].startswith("ended")
    assert watched[-1] == "end of the stream: the session has ended"
    stopping.join()


def test_a_session_is_stopped_by_how_its_id_begins(
    server: Server, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    session = create(stub)
    assert main(["sessions", "stop", session.id[:8], "--server", server.address]) == 0
    assert capsys.readouterr().out.strip() == session.id
    assert main(["sessions", "stop", session.id[:8], "--server", server.address]) == 2
    assert "begins 0 ids" in capsys.readouterr().err

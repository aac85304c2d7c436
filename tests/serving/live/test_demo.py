"""The demonstration, and the program in the README, on a server that runs already."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.cli.demonstration.restyling import LOOKS, pairs, restyle
from serving.cli.demonstration.steering import STEERED, STILLS, both, follow, stills
from serving.client.aio import AsyncClient
from serving.config import ServerConfig
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import Server

README = Path(__file__).parents[3] / "README.md"

SHOWN_S = 300
"""In which a machine that has other things to do has shown all of it."""


def test_two_sessions_are_shown_at_once_and_one_is_steered_through_every_prompt(
    server: Server, stub: sessions_pb2_grpc.SessionsStub, tmp_path: Path
) -> None:
    steered, followed = asyncio.run(both(server.address, tmp_path, span=12))
    assert [cue.cue.prompts[0].text for cue in steered.playback.applied] == list(STEERED)
    assert [cue.frame for cue in steered.playback.applied[1:]] == [switch.frame for switch in steered.switches]
    assert len(stills(steered)) == len(stills(followed)) == STILLS
    assert "none missing and none twice" in followed.report()[1]
    assert sum("to be seen" in line for line in steered.report()) == len(STEERED) - 1
    assert not stub.ListSessions(pb.ListSessionsRequest()).sessions


def test_a_film_is_restyled_under_two_prompts_and_shown_below_what_the_camera_saw(
    server: Server, stub: sessions_pb2_grpc.SessionsStub, tmp_path: Path
) -> None:
    clip = asyncio.run(follow_alone(server.address, tmp_path / "clip.mp4"))
    restyled = asyncio.run(restyle(server.address, clip, tmp_path / "restyled.mp4", span=12))
    assert [cue.cue.prompts[0].text for cue in restyled.playback.applied] == list(LOOKS)
    assert list(restyled.pictures) == sorted(restyled.pictures)
    assert restyled.input.dropped == restyled.input.broken == 0
    seen = [still.prompt for still in pairs(restyled, rows=1)]
    assert seen[:4] == ["what the camera sees"] * 4
    assert seen[4:] == [*[LOOKS[0]] * seen.count(LOOKS[0]), *[LOOKS[1]] * seen.count(LOOKS[1])]
    assert set(seen[4:]) == set(LOOKS)
    assert not stub.ListSessions(pb.ListSessionsRequest()).sessions


@pytest.mark.slow
def test_the_whole_demonstration_ends_with_how_to_open_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.cli.demo", "--output", str(tmp_path), "--seconds", "1"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SHOWN_S)
    assert (shown.returncode, "failed" in shown.stderr) == (0, False)
    *_, sheet, restyled_sheet, last = shown.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in (sheet, restyled_sheet)] == [
        str(tmp_path / "demo.png"), str(tmp_path / "demo-restyled.png")
    ]  # fmt: skip
    page = f"http://127.0.0.1:{ServerConfig.model_fields['http_port'].default}/"
    assert last == f"to steer one yourself: make serve, then open {page} in a browser"


async def follow_alone(server: str, film: Path) -> Path:
    async with AsyncClient(server) as client:
        await follow(client, film, span=12)
    return film


def test_the_program_in_the_readme_steers_a_session(server: Server, stub: sessions_pb2_grpc.SessionsStub) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    looked = program.replace("localhost:9000", server.address).replace(
        "...", "came = event\n            if event.HasField('chunk'): break"
    )
    said: dict[str, pb.Event] = {}
    exec(looked, said)
    assert said["came"].chunk.first_frame == 0
    for session in stub.ListSessions(pb.ListSessionsRequest()).sessions:
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))

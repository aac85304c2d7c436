"""Replicas that die or fall silent in mid-stream: the viewer misses no frame and sees none twice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import grpc
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from ray import serve

from benchmarks.harness.holdings import rooms
from benchmarks.harness.replicas import Replicas, joined_server, wait_until_whole
from engines.device.host_copy import HostCopier
from engines.streaming.state import Block
from serving.client.aio import AsyncClient
from serving.client.capture import Playback, opened
from serving.config import ServerConfig
from serving.deployments.replicas.remote_stages import RemoteDecoder
from serving.deployments.replicas.video_decoder import ABANDONED_S
from serving.deployments.server_process import free_ports
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from serving.pipeline.video_decoder import DecoderStart
from serving.protocol.requests import APPLICATION
from serving.timeline.cue import Blend, Cue
from tests.serving.live.camera import restyle
from tests.serving.live.scenes import (
    NIGHT,
    NOON,
    chunks,
    code_of,
    create,
    cue,
    frames,
    playing,
    seen_by_client,
    settles,
    start,
    watch,
)
from tests.serving.live.test_sessions import refused
from tests.serving.worker.pictures.clips import encoded, picture

Stub = sessions_pb2_grpc.SessionsStub
HURTS = pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="stopped", marks=pytest.mark.slow),
    ],
)

END = 105

LEASE_S, ADOPTED_S = 5, 10
"""Of a session that nobody comes to, and how long another manager may take to come to it on a busy machine."""


class Pair(NamedTuple):
    """A server with two replicas of every stage, each in a process of its own."""

    config: ServerConfig
    logs: Path
    stub: Stub
    stop: Callable[[], None]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.config.grpc_port}"

    @property
    def recordings(self) -> Path:
        return self.config.recordings

    def places(self) -> dict[str, int]:
        """How many are taken, of denoisers by sessions, and of video decoders by copies of sessions."""
        taken = Counter[str]()
        for room in asyncio.run(rooms(self.config, self.logs)):
            taken[room.deployment] += room.of - room.free
        return dict(taken)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    recordings: Path = tmp_path_factory.mktemp("recordings")
    ports = free_ports()
    config = ServerConfig(
        stages="separate", slots=2, denoisers=2, decoders=2, text_encoders=2, managers=2,
        grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics, recordings=recordings,
    )  # fmt: skip
    with joined_server(config) as running, grpc.insecure_channel(f"127.0.0.1:{config.grpc_port}") as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        yield Pair(config, running.logs, stub, running.stop)


def streamed(pair: Pair, hurt: Callable[[pb.Session], None]) -> list[pb.Event]:
    """The events of a session to which something happens once 45 frames have come."""
    session = playing(pair.stub)
    events: list[pb.Event] = []
    try:
        for event in watch(pair.stub, session):
            events.append(event)
            if event.HasField("chunk") and event.chunk.first_frame == 33:
                hurt(session)
            if event.HasField("chunk") and event.chunk.first_frame + len(event.chunk.units) >= END:
                return events
    finally:
        pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
    raise AssertionError("the stream ended")


def resumed(events: list[pb.Event]) -> list[pb.Resumed]:
    return [event.resumed for event in events if event.HasField("resumed")]


@HURTS
@pytest.mark.parametrize(
    ("deployment", "message"), [("Denoiser", "session opened"), ("VideoDecoder", "decoder opened")]
)
def test_no_frame_is_lost_with_a_replica(
    pair: Pair, deployment: str, message: str, number: signal.Signals
) -> None:
    wait_until_whole()
    with Replicas(pair.logs) as replicas:
        events = streamed(pair, lambda session: replicas.send(number, deployment, message, session.id))
    assert frames(events) == list(range(END))
    assert len(resumed(events)) == 1


@pytest.mark.parametrize(
    ("deployment", "message"), [("Denoiser", "session opened"), ("VideoDecoder", "decoder opened")]
)
def test_no_frame_of_a_restyled_video_is_lost_with_a_replica_nor_a_cut(
    pair: Pair, deployment: str, message: str
) -> None:
    wait_until_whole()
    pictures = [encoded(picture(number)) for number in range(60)]
    with Replicas(pair.logs) as replicas:

        def hurt(chunk: pb.Chunk) -> None:
            if chunk.first_frame not in (13, 29):
                return
            (session,) = pair.stub.ListSessions(pb.ListSessionsRequest()).sessions
            if chunk.first_frame == 13:
                pair.stub.Cut(pb.CutRequest(session_id=session.id))
            else:
                replicas.send(signal.SIGKILL, deployment, message, session.id)

        seen = asyncio.run(restyle(pair.address, pictures, "png", 16.0, 61, NOON, hurt))
    assert seen.frames == list(range(61))
    assert len(resumed(seen.events)) == 1
    # On a busy machine one may be late, and the one before it is shown for it.
    assert seen.pictures == sorted(seen.pictures)
    applied = [event.applied for event in seen.events if event.HasField("applied")]
    assert [found.cue.restyling.cuts for found in applied] == [False, True]
    assert 17 <= applied[1].frame <= 29


@HURTS
def test_a_prompt_goes_to_the_text_encoder_that_is_left(pair: Pair, number: signal.Signals) -> None:
    wait_until_whole()
    with Replicas(pair.logs) as replicas:

        def hurt(session: pb.Session) -> None:
            replicas.send(number, "TextEncoder", "prompt encoded", session.id)
            pair.stub.SchedulePrompt(pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT)))

        events = streamed(pair, hurt)
    assert frames(events) == list(range(END))
    applied = [event.applied for event in events if event.HasField("applied")]
    assert [found.cue.prompts[0].text for found in applied if found.frame >= 45] == [NIGHT]


def test_sessions_fill_both_denoisers_and_each_command_reaches_its_own(pair: Pair) -> None:
    wait_until_whole()
    sessions = [create(pair.stub, seed=number) for number in range(4)]
    assert sessions[0].replica != sessions[1].replica
    assert sorted(Counter(session.replica for session in sessions).values()) == [2, 2]
    refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "taken", pair.stub.CreateSession, pb.CreateSessionRequest())
    for frame, session in enumerate(sessions, start=1):
        pair.stub.SchedulePrompt(pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT, frame)))
    described = [pair.stub.GetSession(pb.GetSessionRequest(session_id=session.id)) for session in sessions]
    assert [found.pending[1].frame for found in described] == [1, 2, 3, 4]
    assert [found.replica for found in described] == [session.replica for session in sessions]
    for session in sessions:
        pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_call_between_stages_may_have_more_than_four_mebibytes(pair: Pair) -> None:
    wait_until_whole()
    latents = torch.zeros(3, 16, 60, 104)
    warm = [latents] * 4
    assert sum(block.nbytes for block in warm) > 4 << 20
    decoders = serve.get_deployment_handle("VideoDecoder", APPLICATION)
    pictures = RemoteDecoder(decoders, silence_s=30, copier=HostCopier(torch.device("cpu")))

    async def decoded() -> Chunk:
        await pictures.open("large", DecoderStart(4, 45, warm))
        chunk = await pictures.decode("large", Block(4, latents))
        await pictures.close("large")
        return chunk

    assert len(asyncio.run(decoded()).units) == 12


async def asked_while_it_moves(address: str, film: Path, kill: Callable[[str], None]) -> pb.Session:
    """A session whose replica dies before a prompt is asked for, once that prompt has been seen."""
    async with (
        AsyncClient(address) as client,
        opened(client, [Cue(0, Blend.of(NOON))], fps=16) as session,
        client.control(session, from_frame=0) as controller,
    ):
        with closing(Playback(controller, film)) as playback:
            await controller.start()
            await playback.until(45)
            kill(session.id)
            receipt = await controller.schedule(Blend.of(NIGHT))
            await playback.until(receipt.frame + 12)
        return await client.get(session.id)


def test_a_prompt_for_a_session_that_moves_waits_for_it(pair: Pair, tmp_path: Path) -> None:
    wait_until_whole()
    with Replicas(pair.logs) as replicas:
        kill = partial(replicas.send, signal.SIGKILL, "Denoiser", "session opened")
        session = asyncio.run(asked_while_it_moves(pair.address, tmp_path / "film.mp4", kill))
    assert [applied.cue.prompts[0].text for applied in session.applied] == [NOON, NIGHT]


def test_a_paused_session_goes_on_frame_by_frame_on_another_replica(pair: Pair) -> None:
    wait_until_whole()
    with Replicas(pair.logs) as replicas:

        def hurt(session: pb.Session) -> None:
            pair.stub.Pause(pb.PauseRequest(session_id=session.id))
            replicas.send(signal.SIGKILL, "Denoiser", "session opened", session.id)
            pair.stub.Resume(pb.ResumeRequest(session_id=session.id))

        events = streamed(pair, hurt)
    assert frames(events) == list(range(END))
    assert len(resumed(events)) == 1


def test_a_session_outlives_its_manager_and_then_its_denoiser(pair: Pair) -> None:
    wait_until_whole()
    session = playing(pair.stub)
    with Replicas(pair.logs) as replicas:

        def hurt() -> None:
            replicas.kill_all("SessionManager")
            wait_until_whole()
            adopted(pair, session)
            replicas.send(signal.SIGKILL, "Denoiser", "session opened", session.id)

        events = asyncio.run(seen_by_client(pair.address, session, END, hurt))
    assert frames(events) == list(range(END))
    pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def adopted(pair: Pair, session: pb.Session) -> None:
    """Wait until a manager has adopted the session, and has a copy of it."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        receipt = pair.stub.SchedulePrompt(
            pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT, 10_000)), timeout=20
        )
        if receipt.replicated:
            return
        time.sleep(0.2)
    raise AssertionError("no manager has a copy of the session")


@pytest.mark.slow
def test_a_session_whose_client_and_manager_are_killed_ends_with_its_lease(pair: Pair) -> None:
    wait_until_whole()
    options = pb.SessionOptions(seed=7, fps=16, lease=Duration(seconds=LEASE_S))
    session = pair.stub.CreateSession(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]))
    start(pair.stub, session)
    command = [sys.executable, "-m", "tests.serving.live.watching_client", pair.address, session.id, "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client, Replicas(pair.logs) as replicas:
        assert client.stdout is not None
        assert client.stdout.readline() == b"watching\n"
        client.kill()
        replicas.send(signal.SIGKILL, "SessionManager", "standby of a session", session.id)
    until = time.monotonic() + LEASE_S + ADOPTED_S
    asked = pb.GetSessionRequest(session_id=session.id)
    while code_of(lambda: pair.stub.GetSession(asked)) is not grpc.StatusCode.NOT_FOUND:
        assert time.monotonic() < until
        time.sleep(0.2)
    wait_until_whole()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 3, 10])
def test_a_session_with_no_other_place_waits_for_its_stopped_replica_or_the_next(pair: Pair, seconds: int) -> None:
    """Once it goes on it has one place in all: neither is there a second copy, nor is a place lost."""
    wait_until_whole()
    sessions = [playing(pair.stub), *(create(pair.stub, seed=number) for number in range(3))]
    with Replicas(pair.logs) as replicas:

        def hurt() -> None:
            replicas.send(signal.SIGSTOP, "Denoiser", "session opened", sessions[0].id)
            threading.Timer(seconds, replicas.resume_all).start()

        events = asyncio.run(seen_by_client(pair.address, sessions[0], END, hurt))
    assert frames(events) == list(range(END))
    wait_until_whole()
    one_copy_each = {"Denoiser": 4, "VideoDecoder": 4}
    assert settles(lambda: pair.places() == one_copy_each, ABANDONED_S + 30), pair.places()
    for session in sessions:
        pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_client_outlives_every_session_manager(pair: Pair) -> None:
    wait_until_whole()
    session = playing(pair.stub)
    with Replicas(pair.logs) as replicas:
        events = asyncio.run(
            seen_by_client(pair.address, session, END, lambda: replicas.kill_all("SessionManager"))
        )
    assert frames(events) == list(range(END))
    wait_until_whole()
    pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_recording_outlives_every_session_manager(pair: Pair) -> None:
    wait_until_whole()
    session = playing(pair.stub)
    begun = pair.stub.StartRecording(pb.StartRecordingRequest(session_id=session.id))
    with Replicas(pair.logs) as replicas:
        asyncio.run(seen_by_client(pair.address, session, END, lambda: replicas.kill_all("SessionManager")))
    wait_until_whole()
    made = pair.stub.StopRecording(pb.StopRecordingRequest(session_id=session.id))
    assert (made.name, made.first_frame, made.finished) == (begun.name, begun.first_frame, True)
    with av.open(str(pair.recordings / f"{begun.name}.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == made.frames >= END - begun.first_frame
    assert not list(pair.recordings.glob("*.part"))
    pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_manager_that_is_stopped_does_not_hold_up_its_denoiser(pair: Pair) -> None:
    """Another manager adopts the session, on the same denoiser; the first stays stopped to the end."""
    wait_until_whole()
    session = playing(pair.stub)
    with Replicas(pair.logs) as replicas:

        def hurt() -> None:
            replicas.send(signal.SIGSTOP, "SessionManager", "standby of a session", session.id)

        events = asyncio.run(seen_by_client(pair.address, session, END, hurt))
    assert frames(events) == list(range(END))
    assert not resumed(events)
    wait_until_whole()
    pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


@pytest.mark.slow
def test_a_stopped_manager_is_sent_nobody_once_it_has_not_answered_for_a_second(pair: Pair) -> None:
    wait_until_whole()
    session = playing(pair.stub)
    with Replicas(pair.logs) as replicas:
        replicas.send(signal.SIGSTOP, "SessionManager", "standby of a session", session.id)
        time.sleep(1.5)
        for _ in range(10):
            assert pair.stub.DescribeServer(pb.DescribeServerRequest(), timeout=4).model == "pocket"
    wait_until_whole()
    pair.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def test_a_server_that_stops_tells_its_viewers_and_finishes_recordings(pair: Pair) -> None:
    wait_until_whole()
    session = create(pair.stub, fps=16, ahead=1)
    recording = pair.stub.StartRecording(pb.StartRecordingRequest(session_id=session.id))
    start(pair.stub, session)
    events = watch(pair.stub, session)
    chunks(events, 45)
    stopping = threading.Thread(target=pair.stop)
    stopping.start()
    states = [event.state.state for event in events if event.HasField("state")]
    stopping.join()
    assert states[-1] == pb.SESSION_STATE_ENDED
    with av.open(str(pair.recordings / f"{recording.name}.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) >= 45

"""A server of the pocket model in INT8: sessions follow their prompts, fork, and outlive their denoiser."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from benchmarks.harness.replicas import Replicas, joined_server, wait_until_whole
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import NIGHT, cue, frames, playing, watch
from tests.support.quantized import POCKET_INT8, write_pocket

pytestmark = pytest.mark.slow

END = 105


class Quantized(NamedTuple):
    """The server, and where its replicas log."""

    logs: Path
    stub: sessions_pb2_grpc.SessionsStub


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quantized]:
    folder: Path = tmp_path_factory.mktemp("quantized")
    write_pocket(folder / "models" / "pocket-int8")
    ports = free_ports()
    config = ServerConfig(
        model="pocket-int8", models_dir=folder / "models", slots=2, denoisers=2, grpc_port=ports.grpc,
        http_port=ports.http, metrics_port=ports.metrics, recordings=folder / "recordings",
    )  # fmt: skip
    with joined_server(config) as running, grpc.insecure_channel(f"127.0.0.1:{config.grpc_port}") as channel:
        yield Quantized(running.logs, sessions_pb2_grpc.SessionsStub(channel))  # type: ignore[no-untyped-call]


def test_a_session_changes_its_prompt_and_outlives_its_denoiser(quantized: Quantized) -> None:
    wait_until_whole()
    stub, session, events = quantized.stub, playing(quantized.stub), list[pb.Event]()
    with Replicas(quantized.logs) as replicas:
        for event in watch(stub, session):
            events.append(event)
            if event.HasField("chunk") and event.chunk.first_frame == 21:
                stub.SchedulePrompt(pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT)))
            if event.HasField("chunk") and event.chunk.first_frame == 57:
                replicas.send(signal.SIGKILL, "Denoiser", "session opened", session.id)
            if event.HasField("chunk") and event.chunk.first_frame + len(event.chunk.units) >= END:
                break
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
    assert frames(events) == list(range(END))
    assert [event.applied.cue.prompts[0].text for event in events if event.HasField("applied")][-1] == NIGHT
    assert sum(event.HasField("resumed") for event in events) == 1


def test_a_session_says_what_its_weights_are_and_can_be_forked(quantized: Quantized) -> None:
    wait_until_whole()
    # There has to be time for two of them, also on a busy machine.
    stub, session = quantized.stub, playing(quantized.stub, fps=6)
    found = stub.GetSession(pb.GetSessionRequest(session_id=session.id))
    weights = {mark.name: mark.value for mark in found.provenance.weights}
    assert (found.provenance.model, found.provenance.base_model) == ("pocket-int8", "pocket")
    assert weights["quantization"] == str(POCKET_INT8)
    for event in watch(stub, session):
        if event.HasField("chunk") and event.chunk.first_frame >= 21:
            break
    fork = stub.ForkSession(pb.ForkSessionRequest(session_id=session.id))
    assert fork.id != session.id
    for each in (session, fork):
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=each.id))

"""What those who run a server ask of it: health, reflection, metrics, logs, and sessions that free themselves."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving.launch.ray_environment import ENVIRONMENT
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.conftest import SLOTS, Server, serving
from tests.serving.live.scenes import NIGHT, NOON, children, chunks, create, cue, playing, start, watch

Stub = sessions_pb2_grpc.SessionsStub

DASHBOARD = Path(__file__).parents[3] / "helm" / "longtake" / "dashboards" / "longtake.json"
NEED_A_GPU = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
NEED_A_FAULT = {f"ray_longtake_{name}_total" for name in ("refused", "failovers", "gap_frames")}
EXPORT_S = 60
"""How long Ray may take until a metric can be read."""


def test_the_server_says_that_it_is_healthy(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_replicas_give_way_to_nothing_else_on_the_machine(server: Server) -> None:
    assert server
    niceness = [one.nice() for one in children(lambda one: "ServeReplica:longtake" in "".join(one.cmdline()))]
    assert niceness == [psutil.Process().nice()] * 2


def test_a_client_without_the_protocol_can_ask_for_it(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "longtake.v1.Sessions" in database.get_services()
        assert database.FindFileContainingSymbol("longtake.v1.Sessions").package == "longtake.v1"


def scraped(server: Server) -> list[str]:
    """The lines that Prometheus would read."""
    with urllib.request.urlopen(server.metrics) as answer:
        text: bytes = answer.read()
    return text.decode().splitlines()


def until_exported(server: Server, name: str, reached: Callable[[float], bool]) -> None:
    """Wait until a metric of the server, summed over its labels, is as it should be."""
    until, found = time.monotonic() + EXPORT_S, 0.0
    while time.monotonic() < until:
        lines = (line for line in scraped(server) if line.startswith(f"ray_{name}{{"))
        found = sum(float(line.rsplit(" ", 1)[1]) for line in lines)
        if reached(found):
            return
        time.sleep(0.5)
    raise AssertionError(f"{name} is {found} after {EXPORT_S} s")


def test_what_viewers_wait_for_is_exported(server: Server, stub: Stub) -> None:
    paced = playing(stub)
    chunks(watch(stub, paced), 33)
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=paced.id))
    session = create(stub)
    start(stub, session)
    events = watch(stub, session)
    chunks(events, 21)
    stub.SchedulePrompt(pb.SchedulePromptRequest(session_id=session.id, cue=cue(NIGHT)))
    chunks(events, 300)
    until_exported(server, "longtake_sessions", lambda value: value == 1)
    until_exported(server, "longtake_slots_free", lambda value: value == SLOTS - 1)
    until_exported(server, "longtake_viewers", lambda value: value == 1)
    until_exported(server, "longtake_standby_absent", lambda value: value == 0)
    until_exported(server, "longtake_sent_bytes_total", lambda value: value > 100_000)
    for name in ("stage", "chunk_interval", "command_to_frame", "deadline_slack"):
        name = f"{name}_seconds"
        until_exported(server, f"longtake_{name}_count", lambda value: value >= 1)
    assert asked_by_the_dashboard() <= {re.split(r"[{ ]", line)[0] for line in scraped(server)}


def asked_by_the_dashboard() -> set[str]:
    """Metrics that a server has which has shown a film and a change of prompt."""
    return set(re.findall(r"ray_\w+", DASHBOARD.read_text())) - NEED_A_GPU - NEED_A_FAULT


def test_a_log_line_names_its_session(server: Server, stub: Stub) -> None:
    session = create(stub)
    files = server.logs.glob("replica_longtake_Denoiser_*.log")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    opened = [line for line in lines if line["message"] == "session opened" and line["session"] == session.id]
    assert len(opened) == 1


def test_an_abandoned_session_is_freed_when_its_lease_is_over(stub: Stub) -> None:
    options = pb.SessionOptions(lease=Duration(seconds=1))
    for _ in range(SLOTS):
        stub.CreateSession(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]))
    until = time.monotonic() + 10
    while stub.ListSessions(pb.ListSessionsRequest()).sessions:
        assert time.monotonic() < until
        time.sleep(0.2)
    again = [create(stub) for _ in range(SLOTS)]
    assert len({session.id for session in again}) == SLOTS


@pytest.mark.slow
def test_logs_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ROTATION_MAX_BYTES", "20000")
    with serving(tmp_path) as server:
        for _ in range(200):
            session = create(server.stub)
            server.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
        files = {file.name: file.stat().st_size for file in server.logs.glob("replica_longtake_Denoiser_*")}
    assert {name.rpartition(".")[2] for name in files} >= {"log", "1", "2"}
    assert len(files) <= 1 + int(ENVIRONMENT["RAY_ROTATION_BACKUP_COUNT"])
    assert max(files.values()) <= 20_000

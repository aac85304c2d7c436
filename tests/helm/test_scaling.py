"""Replicas that come and go by the sessions there are, in a real Ray cluster: as the chart has Serve scale."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from benchmarks.harness.chart import Chart
from benchmarks.harness.ray_head import SCALED, Operated, operated
from benchmarks.harness.viewer import watched
from serving.deployments.scaling.policy import NOTICED_S
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from serving.protocol.status import reason_in, retry_after_in
from tests.serving.live.scenes import playing

pytestmark = pytest.mark.slow

SLOTS, MOST = 2, 3
GROUPS = {"front": 2, "denoiser": MOST, "decoder": MOST, "text": 1}


@contextmanager
def scaled(chart: Chart, folders: pytest.TempPathFactory, *values: str) -> Iterator[Operated]:
    rendered = chart.render(*SCALED, *values)
    # Ray puts sockets there, whose names may not be long.
    with operated(rendered, folders.mktemp("a"), GROUPS) as found:
        found.put(rendered)
        found.wait_until_running()
        yield found


def opened(stub: sessions_pb2_grpc.SessionsStub) -> pb.Session:
    """A session that no replica is too slow for, and that stays though nobody comes."""
    options = pb.SessionOptions(fps=1)
    options.lease.FromSeconds(1800)
    session: pb.Session = stub.CreateSession(pb.CreateSessionRequest(options=options))
    return session


def wait_for(server: Operated, stage: str, least: int, most: int = MOST) -> None:
    server.wait_for(lambda: least <= len(server.replicas(stage)) <= most)


def test_denoisers_come_before_the_session_that_needs_them_and_go_from_under_one_that_stays(
    chart: Chart, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = (f"server.slots={SLOTS}", f"autoscaling.denoisers.max={MOST}")
    with scaled(chart, tmp_path_factory, *values) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        wait_for(server, "Denoiser", 1, 1)
        sessions: list[pb.Session] = []
        while len(sessions) < SLOTS * MOST - 1:
            sessions.append(opened(stub))
            wait_for(server, "Denoiser", min(MOST, len(sessions) // SLOTS + 1))
        staying = playing(stub)
        with pytest.raises(grpc.RpcError) as refused:
            opened(stub)
        metadata: Any = refused.value.trailing_metadata()
        assert reason_in(metadata) == "SLOTS_FULL"
        assert (retry_after_in(metadata) or 0.0) > NOTICED_S
        for session in sessions:
            stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
        # It is on the newest, which is the one that goes.
        fewer = partial(wait_for, server, "Denoiser", 1, MOST - 1)
        (viewer,) = asyncio.run(watched(server.grpc, fewer, staying))
        assert viewer.is_whole()
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=staying.id))
        wait_for(server, "Denoiser", 1, 1)
        assert opened(stub).id


def test_decoders_come_by_themselves_where_they_are_a_stage_of_their_own(
    chart: Chart, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = (
        "server.stages=separate", "server.slots=4", f"server.decoder_slots={SLOTS}",
        "autoscaling.denoisers.max=1", f"autoscaling.decoders.max={MOST}",
    )  # fmt: skip
    with scaled(chart, tmp_path_factory, *values) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        for count in range(1, 4):
            assert opened(stub).id
            wait_for(server, "VideoDecoder", count // SLOTS + 1)
        assert len(server.replicas("Denoiser")) == len(server.replicas("TextEncoder")) == 1

"""Several hosts, one denoiser on each: what a lost link does to the sessions behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import grpc
import pytest

from benchmarks.harness.host_cluster import START_S, HostCluster
from benchmarks.harness.namespaces import Hosts, why_not
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import create, described, frames, playing, seen_by_client

pytestmark = pytest.mark.slow

DENOISERS, SLOTS = 3, 2
GIVEN_UP_S, ONE_COPY_S = 60.0, 60.0
ASKED = 8
"""Calls in a row: any of two managers answers each."""

END = 201


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Hosts() as hosts:
        yield HostCluster(hosts, tmp_path_factory.mktemp("ray"), DENOISERS)


@pytest.fixture
def stub(cluster: HostCluster) -> Iterator[sessions_pb2_grpc.SessionsStub]:
    with grpc.insecure_channel(cluster.address) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)  # type: ignore[no-untyped-call]
        yield stub
        for session in stub.ListSessions(pb.ListSessionsRequest()).sessions:
            stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))


def moved(events: list[pb.Event]) -> bool:
    """Whether a viewer was told; one whose stream began anew meanwhile is told by the state it begins with."""
    return any(event.HasField("resumed") or event.state.HasField("resumed") for event in events)


def wait_for_one_copy(cluster: HostCluster, stub: sessions_pb2_grpc.SessionsStub, session: pb.Session) -> None:
    """Until no denoiser but the one that answers for a session has a copy of it."""
    cluster.wait_for(lambda: len(cluster.copies(session)) == 1, ONE_COPY_S)
    assert cluster.copies(session) == [described(stub, session).replica]


def wait_for_free_slots(cluster: HostCluster, stub: sessions_pb2_grpc.SessionsStub, slots: int) -> None:
    """Until all managers have heard of so many: they know a replica later than Serve does."""

    def heard() -> int:
        return int(stub.GetServerInfo(pb.GetServerInfoRequest()).free_slots)

    cluster.wait_for(lambda: all(heard() == slots for _ in range(ASKED)), GIVEN_UP_S)


def test_each_session_is_on_a_host_of_its_own(cluster: HostCluster, stub: sessions_pb2_grpc.SessionsStub) -> None:
    wait_for_free_slots(cluster, stub, DENOISERS * SLOTS)
    sessions = [create(stub, seed=number) for number in range(DENOISERS)]
    assert len({cluster.host_of(session).name for session in sessions}) == DENOISERS


def test_a_link_that_is_down_for_three_seconds_costs_no_frame(
    cluster: HostCluster, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    session = playing(stub)
    cut = cluster.host_of(session)
    reconnecting = threading.Timer(3, cut.reconnect)

    def hurt() -> None:
        cut.cut_off()
        reconnecting.start()

    events = asyncio.run(seen_by_client(cluster.address, session, END, hurt))
    assert frames(events) == list(range(END))
    assert moved(events)
    assert cluster.hosts == 1 + DENOISERS
    wait_for_one_copy(cluster, stub, session)
    assert cluster.host_of(described(stub, session)).name != cut.name


def test_sessions_of_a_host_that_is_given_up_go_on_elsewhere_and_a_new_host_takes_its_place(
    cluster: HostCluster, stub: sessions_pb2_grpc.SessionsStub
) -> None:
    cluster.wait_for(lambda: cluster.is_whole, GIVEN_UP_S)
    session = playing(stub)
    lost = cluster.host_of(described(stub, session))
    events = asyncio.run(seen_by_client(cluster.address, session, END, lost.cut_off))
    assert frames(events) == list(range(END))
    assert moved(events)
    cluster.wait_for(lambda: cluster.hosts == DENOISERS, GIVEN_UP_S)
    assert cluster.host_of(described(stub, session)).name != lost.name
    new = cluster.join("new")
    cluster.wait_for(lambda: cluster.hosts == 1 + DENOISERS, GIVEN_UP_S)
    cluster.wait_for(lambda: cluster.is_whole, START_S)
    # It ends once it hears that it was given up.
    cluster.ray_of(lost)
    lost.reconnect()
    wait_for_free_slots(cluster, stub, DENOISERS * SLOTS - 1)
    sessions = [session, *(create(stub, seed=number) for number in range(DENOISERS))]
    assert new.name in {cluster.host_of(described(stub, found)).name for found in sessions}
    for found in sessions:
        wait_for_one_copy(cluster, stub, found)

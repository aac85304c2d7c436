"""Two servers, each with a Ray cluster of its own: sessions of the one go on on the other under their clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import grpc
import pytest

from benchmarks.harness.browser import CHROMIUM, DRIVER, browsing
from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import new_cue
from serving.protocol.status import reason_in, server_in
from serving.timeline.cue import Blend, Cue
from tests.serving.live.conftest import Server, serving
from tests.serving.live.scenes import NIGHT, NOON, frames
from tests.support.tcp_switch import TcpSwitch, switched

pytestmark = pytest.mark.slow

SLOTS, MANY = 2, 20
ANNA = (("authorization", "Bearer secret-a"),)


@contextmanager
def two_servers(tmp_path: Path, slots: int, *more: str, callers: bool = True) -> Iterator[tuple[Server, Server]]:
    """The old one and the new one, which have the same operators, and the same callers or none."""
    (tmp_path / "tokens").write_text("anna secret-a\n")
    (tmp_path / "operator").write_text("secret-o\n")
    options = ["--operator-token", str(tmp_path / "operator"), "--slots", str(slots), *more]
    if callers:
        options += ["--tokens", str(tmp_path / "tokens"), "--limits.sessions-per-token", str(slots)]
    with serving(tmp_path / "old", *options) as old, serving(tmp_path / "new", *options) as new:
        yield old, new


def port_of(server: Server) -> int:
    return int(server.address.rpartition(":")[2])


async def evacuated(old: Server, new: Server, token: Path, *options: str) -> str:
    """What the command says that operators run."""
    where = ("--from", old.address, "--to", new.address, "--operator-token", str(token), *options)
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving.cli.main", "evacuate", *where, stdout=subprocess.PIPE
    )
    said, _ = await command.communicate()
    assert command.returncode == 0
    return said.decode()


async def steered(client: AsyncClient, session: pb.Session, end: int) -> list[pb.Event]:
    """What a controller sees that changes the prompt late, and has begun on the old server."""
    events: list[pb.Event] = []
    async with client.control(session, 0) as controller:
        await controller.start()
        async for event in controller:
            events.append(event)
            if event.chunk.first_frame == 117:
                await controller.schedule(NIGHT)
            if event.chunk.first_frame + len(event.chunk.units) >= end:
                return events
    raise AssertionError("the stream ended")


async def watched(client: AsyncClient, session: pb.Session, end: int) -> list[pb.Event]:
    events: list[pb.Event] = []
    async with aclosing(client.watch(session.id, 0)) as stream:
        async for event in stream:
            events.append(event)
            if event.chunk.first_frame + len(event.chunk.units) >= end:
                return events
    raise AssertionError("the stream ended")


async def watched_until(client: AsyncClient, session: pb.Session, over: asyncio.Event) -> list[pb.Event]:
    """What is seen until the first chunk after that."""
    events: list[pb.Event] = []
    async with aclosing(client.watch(session.id, 0)) as stream:
        async for event in stream:
            events.append(event)
            if over.is_set() and event.HasField("chunk"):
                return events
    raise AssertionError("the stream ended")


async def leads_here(server: Server) -> None:
    """Until the server has seen itself at the address that clients know."""
    while not any("public address leads here" in log.read_text() for log in server.logs.glob("*SessionManager*")):
        await asyncio.sleep(0.5)


def missed_none(events: list[pb.Event]) -> bool:
    """Whether every frame came once, and the session went on elsewhere at most once."""
    seen = frames(events)
    return seen == list(range(len(seen))) and sum(event.HasField("resumed") for event in events) <= 1


def test_sessions_go_on_on_another_server_under_clients_that_steer_and_watch_them(tmp_path: Path) -> None:
    async def go(old: Server, new: Server) -> None:
        async with asyncio.timeout(120), AsyncClient(old.address, token="secret-a") as client:
            opened = [await client.create(seed=7, cues=[Cue(0, Blend.of(NOON))]) for _ in range(SLOTS)]
            seeing = [asyncio.create_task(see(client, one, 200)) for one in opened for see in (steered, watched)]
            await asyncio.sleep(4)
            said = await evacuated(old, new, tmp_path / "operator")
            assert said.endswith("0 sessions left, 0 of them on their way\n")
            assert all(missed_none(events) for events in await asyncio.gather(*seeing))
            # Unary calls go where the session is, and new sessions are opened there.
            for one in opened:
                assert (await client.get(one.id)).prompt == NIGHT
                await client.delete(one.id)
            assert (await client.create(cues=[Cue(0, Blend.of(NOON))])).id
        async with AsyncClient(new.address, token="secret-a") as there:
            assert len(await there.list()) == 1

    with two_servers(tmp_path, SLOTS) as (old, new):
        asyncio.run(go(old, new))
        with pytest.raises(grpc.RpcError) as refused:
            old.stub.CreateSession(pb.CreateSessionRequest(cues=[new_cue(NOON, 0)]), metadata=ANNA)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        told = refused.value.trailing_metadata()
        assert (reason_in(told), server_in(told)) == ("SESSION_MOVED", new.address)
        for call, request in (
            (new.stub.EvacuateServer, pb.EvacuateServerRequest(to=old.address)),
            (new.stub.ImportSession, pb.ImportSessionRequest()),
        ):
            with pytest.raises(grpc.RpcError) as denied:
                call(request, metadata=ANNA)
            assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_many_sessions_go_by_themselves_where_the_address_is_led_that_clients_know(tmp_path: Path) -> None:
    async def go(switch: TcpSwitch, old: Server, new: Server) -> None:
        address, over = f"127.0.0.1:{switch.port}", asyncio.Event()
        async with (
            asyncio.timeout(300),
            AsyncClient(address, token="secret-a") as client,
            AsyncClient(address, token="secret-a") as early,
            AsyncClient(new.address, token="secret-a") as there,
        ):
            cues = [Cue(0, Blend.of(NOON))]
            opened = [await client.create(seed=number, fps=1, cues=cues) for number in range(MANY)]
            for one in opened:
                await client.start(one.id)
            await leads_here(old)
            seeing = [asyncio.create_task(watched_until(client, one, over)) for one in opened]
            switch.target = port_of(new)
            seeing += [asyncio.create_task(watched_until(early, one, over)) for one in opened]
            while {one.id for one in opened} != {one.id for one in await there.list()}:
                await asyncio.sleep(0.5)
            over.set()
            assert all(missed_none(events) for events in await asyncio.gather(*seeing))
            assert (await client.create(cues=cues)).id in {one.id for one in await there.list()}

    with switched(0) as switch:
        followed = ("--public-address", f"127.0.0.1:{switch.port}")
        with two_servers(tmp_path, MANY + 1, *followed) as (old, new):
            switch.target = port_of(old)
            asyncio.run(go(switch, old, new))


@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Chromium: `make .venv/browser`")
def test_a_page_goes_on_with_its_session_on_another_server(tmp_path: Path) -> None:
    def leave(old: Server, new: Server, *options: str) -> None:
        asyncio.run(evacuated(old, new, tmp_path / "operator", *options))

    with (
        two_servers(tmp_path, 1, callers=False) as (old, new),
        switched(old.http_port) as switch,
        browsing(f"http://127.0.0.1:{switch.port}", tmp_path / "profile") as page,
    ):
        page.open()
        page.start(NOON)
        session = page.session
        switch.target = new.http_port
        leave(old, new, "--same-address")
        page.until_frame(page.frame + 48)
        assert page.session == session == new.stub.ListSessions(pb.ListSessionsRequest()).sessions[0].id
        # Back again, to a page at another address.
        page.press("new")
        page.until(lambda: page.frame < 0)
        page.start(NIGHT)
        session, there = page.session, f"http://127.0.0.1:{old.http_port}"
        back = (sys.executable, "-m", "serving.cli.main", "evacuate", "--from", old.address, "--stop")
        subprocess.run((*back, "--operator-token", str(tmp_path / "operator")), check=True, timeout=60)
        leave(new, old, "--page", there)
        page.until(lambda: page.driver.current_url == f"{there}/#session={session}")
        page.until_frame(48)
        assert page.session == session == old.stub.ListSessions(pb.ListSessionsRequest()).sessions[0].id

"""All sessions of one server go to another one, each with denoisers, managers and a register of its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typing_extensions import override

from serving.auth import Caller
from serving.client.operator import OperatorCalls
from serving.errors import (
    InvalidRequest,
    NotOperator,
    ReplicaLost,
    ServingError,
    SessionMoved,
    SessionNotFound,
    SessionOnItsWay,
    SlotsFull,
    WrongState,
)
from serving.gateway import evacuation
from serving.gateway.evacuation import OtherServersByGrpc
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication import public_address
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, Viewer, created, cue, run, started
from tests.serving.worker.bench import NIGHT

OPERATOR = Caller("", is_operator=True)
OLD, NEW, PUBLIC = "old:9000", "new:9000", "films:9000"


class Calls(OperatorCalls):
    """Calls a server in this event loop, as an operator; what is in `lost` is not answered, or not even heard."""

    def __init__(self, address: str, service: SessionService, lost: dict[str, str]) -> None:
        super().__init__(address, "")
        self._service, self._lost = service, lost

    @override
    async def server_info(self) -> pb.GetServerInfoResponse:
        return await self._service.server_info(OPERATOR)

    @override
    async def offer(self, request: pb.OfferSessionRequest) -> None:
        await self._service.offer(request, OPERATOR)

    @override
    async def send(self, request: pb.ImportSessionRequest) -> pb.Session:
        if self._lost.get("send") == "request":
            raise ReplicaLost("the request is lost")
        importing = asyncio.create_task(self._service.import_session(request, OPERATOR))
        if self._lost.get("send") == "caller":
            while not self._service.is_standby:
                await asyncio.sleep(0)
            importing.cancel()
            raise ReplicaLost("the call was cancelled when it had begun")
        session = await importing
        if self._lost.get("send") == "answer":
            raise ReplicaLost("the answer is lost")
        return session

    @override
    async def settle(self, request: pb.SettleTransferRequest) -> bool:
        if "settle" in self._lost:
            raise ReplicaLost("the request is lost")
        return (await self._service.settle(request, OPERATOR)).begun


@dataclass
class Others(OtherServersByGrpc):
    """The servers by their addresses."""

    servers: dict[str, SessionService] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    _snapshot_bytes: int = 64 << 20

    @override
    def _at(self, address: str) -> OperatorCalls:
        if address not in self.servers:
            raise ReplicaLost("nobody answers")
        return Calls(address, self.servers[address], self.lost)


class Two(NamedTuple):
    old: Cluster
    new: Cluster
    others: Others

    @property
    def managers(self) -> list[SessionService]:
        return [*self.old.managers, *self.new.managers]

    async def evacuate(self, public: str = NEW) -> pb.EvacuateServerResponse:
        request = pb.EvacuateServerRequest(to=NEW, public=public)
        return await self.old.managers[-1].evacuate(request, OPERATOR)

    async def is_done(self) -> None:
        async with asyncio.timeout(30):
            while (await self.evacuate()).sessions:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def two(
    pocket: OpenedModel, folder: Path, managers: int = 1, slots: int = 2, **settings: Any
) -> AsyncIterator[Two]:
    others = Others()
    async with (
        cluster(pocket, folder / "old", replicas="ab", managers=managers, others=others, **settings) as old,
        cluster(pocket, folder / "new", replicas="c", slots=slots, others=others, **settings) as new,
    ):
        others.servers |= {OLD: old.managers[0], NEW: new.managers[0]}
        yield Two(old, new, others)


async def follow(there: Two, viewer: Viewer, session: pb.Session, frames: int, told: str = NEW) -> list[int]:
    """All frames that a viewer sees who is told where the session has gone, and goes there."""
    with pytest.raises(SessionMoved) as moved:
        await viewer.task
    assert moved.value.server == told
    seen = viewer.frames
    request = pb.WatchRequest(session_id=session.id, from_frame=len(seen))
    async for sent in there.new.managers[0].watch(request, ANNA):
        seen += [unit.frame for unit in sent.event.chunk.units]
        if len(seen) >= frames:
            return seen
    raise AssertionError("the stream ended")


def test_a_viewer_misses_no_frame_and_sees_none_twice(pocket: OpenedModel, tmp_path: Path) -> None:
    async def go() -> None:
        async with two(pocket, tmp_path) as there:
            sessions = [await started(there.old.managers[0]) for _ in range(2)]
            viewers = [Viewer(there.old.managers[0], session) for session in sessions]
            for viewer in viewers:
                await viewer.sees(45)
            await there.is_done()
            for session, viewer in zip(sessions, viewers, strict=True):
                seen = await follow(there, viewer, session, 150)
                assert seen == list(range(len(seen)))
            assert there.old.counts.failovers == [("server", True)] * 2
            assert there.old.copies() == {"a": 0, "b": 0}

    run(go())


def test_who_asks_the_old_server_is_told_where_to_ask(pocket: OpenedModel, tmp_path: Path) -> None:
    async def ask() -> None:
        async with two(pocket, tmp_path) as there:
            old, session = there.old.managers[0], await started(there.old.managers[0])
            await there.is_done()
            for asked in (
                old.get(session.id, ANNA),
                old.get("another", ANNA),
                old.delete(session.id, ANNA),
                old.command(session.id, pb.Command(pause=pb.Pause()), ANNA),
                created(old),
            ):
                with pytest.raises(SessionMoved) as moved:
                    await asked
                assert moved.value.server == NEW
            assert (await there.new.managers[0].get(session.id, ANNA)).id == session.id

    run(ask())


def test_a_command_that_is_sent_again_is_not_done_again(pocket: OpenedModel, tmp_path: Path) -> None:
    async def ask() -> None:
        async with two(pocket, tmp_path) as there:
            session = await started(there.old.managers[0])
            command = pb.Command(id="1", client_id="anna", schedule_prompt=cue(NIGHT, 4000))
            first = await there.old.managers[0].command(session.id, command, ANNA)
            await there.is_done()
            again = await there.new.managers[0].command(session.id, command, ANNA)
            assert (again.cue_frame, again.repeated) == (first.cue_frame, True)

    run(ask())


@pytest.mark.parametrize(
    ("commands", "state"),
    [
        ([], pb.SESSION_STATE_READY),
        ([pb.Command(start=pb.Start()), pb.Command(pause=pb.Pause())], pb.SESSION_STATE_PAUSED),
        ([pb.Command(start=pb.Start()), pb.Command(reset=pb.Reset())], pb.SESSION_STATE_CREATED),
    ],
)
def test_a_session_goes_as_it_stands(
    pocket: OpenedModel, tmp_path: Path, commands: list[pb.Command], state: pb.SessionState
) -> None:
    async def go() -> None:
        async with two(pocket, tmp_path) as there:
            session = await created(there.old.managers[0])
            for command in commands:
                await there.old.managers[0].command(session.id, command, ANNA)
                await asyncio.sleep(0.2)
            copy = there.old.benches[there.old.owner_of(session.id)].denoiser._copies.all[0]
            await until(lambda: not (copy.is_busy or copy.undelivered))
            before = await there.old.managers[0].get(session.id, ANNA)
            await there.is_done()
            after = await there.new.managers[0].get(session.id, ANNA)
            assert after.state == before.state == state
            for name in ("take", "next_frame", "pending", "create_time", "options", "current_start_frame"):
                assert getattr(after, name) == getattr(before, name), name

    run(go())


def test_a_recording_ends_with_what_the_old_server_has_made(pocket: OpenedModel, tmp_path: Path) -> None:
    async def record() -> None:
        async with two(pocket, tmp_path) as there:
            old, session = there.old.managers[0], await started(there.old.managers[0])
            await old.start_recording(pb.StartRecordingRequest(session_id=session.id), ANNA)
            viewer = Viewer(old, session)
            await viewer.sees(45)
            await there.is_done()
            with pytest.raises(SessionMoved):
                await viewer.task
            moved_at = (await there.new.managers[0].get(session.id, ANNA)).resumed.frame
            async with asyncio.timeout(20):
                while not (found := (await old.list_recordings(pb.ListRecordingsRequest(), ANNA)).recordings):
                    await asyncio.sleep(0.1)
            assert found[0].first_frame + found[0].frames == moved_at
            assert not (await there.new.managers[0].get(session.id, ANNA)).recording

    run(record())


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_session_whose_import_is_not_answered_goes_on_where_it_is(
    pocket: OpenedModel, tmp_path: Path, lost: str
) -> None:
    async def lose() -> None:
        async with two(pocket, tmp_path) as there:
            session = await started(there.old.managers[0])
            viewer = Viewer(there.old.managers[0], session)
            await viewer.sees(45)
            there.others.lost["send"] = lost
            await there.evacuate()
            if lost == "request":
                await viewer.sees(150)
                assert there.new.copies() == {"c": 0}
            else:
                seen = await follow(there, viewer, session, 150)
                assert seen == list(range(len(seen)))

    run(lose())


@pytest.mark.parametrize("lost", ["request", "answer", "caller"])
def test_another_manager_finds_out_what_became_of_a_held_session(
    pocket: OpenedModel, tmp_path: Path, lost: str
) -> None:
    async def die() -> None:
        async with two(pocket, tmp_path, managers=2) as there:
            session = await started(there.old.managers[0])
            viewer = Viewer(there.old.managers[1], session)
            await viewer.sees(45)
            there.others.lost |= {"send": lost, "settle": "request"}
            await there.evacuate()
            async with asyncio.timeout(20):
                while not (await there.evacuate()).held:
                    await asyncio.sleep(0.05)
            with pytest.raises(ReplicaLost, match="on its way"):
                await there.old.managers[1].delete(session.id, ANNA)
            if lost != "request":
                await until(lambda: there.new.leased(session.id) == ["c"])
            assert there.old.leased(session.id) == []
            await there.old.kill_manager(there.old.managers[0])
            await asyncio.sleep(2.0)
            assert there.old.leased(session.id) == []
            there.others.lost.clear()
            if lost == "request":
                await viewer.sees(150)
            else:
                seen = await follow(there, viewer, session, 150)
                assert seen == list(range(len(seen)))

    run(die())


def test_sessions_stay_while_the_other_server_is_full_and_go_when_it_has_room(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def fill() -> None:
        async with two(pocket, tmp_path, slots=1) as there:
            other = await created(there.new.managers[0])
            session = await started(there.old.managers[0])
            viewer = Viewer(there.old.managers[0], session)
            await there.evacuate()
            await viewer.sees(105)
            assert await there.evacuate() == pb.EvacuateServerResponse(sessions=1)
            await there.new.managers[0].delete(other.id, ANNA)
            await there.is_done()

    run(fill())


def test_an_evacuation_can_be_called_off(pocket: OpenedModel, tmp_path: Path) -> None:
    async def call_off() -> None:
        async with two(pocket, tmp_path, slots=1) as there:
            await created(there.new.managers[0])
            session = await started(there.old.managers[0])
            await there.evacuate()
            await there.old.managers[0].evacuate(pb.EvacuateServerRequest(), OPERATOR)
            await asyncio.sleep(1.2)
            assert (await created(there.old.managers[0])).id != session.id

    run(call_off())


@pytest.mark.parametrize("managers", [1, 2])
def test_what_waits_for_a_server_that_is_gone_for_good_goes_on_when_an_operator_says_so(
    pocket: OpenedModel, tmp_path: Path, managers: int
) -> None:
    async def give_up() -> None:
        async with two(pocket, tmp_path, managers=managers) as there:
            session = await started(there.old.managers[0])
            viewer = Viewer(there.old.managers[0], session)
            await viewer.sees(45)
            there.others.lost |= {"send": "request", "settle": "request"}
            await there.evacuate()
            async with asyncio.timeout(20):
                while not (await there.evacuate()).held:
                    await asyncio.sleep(0.05)
            gone = pb.EvacuateServerRequest(gone=True)
            left = await there.old.managers[0].evacuate(gone, OPERATOR)
            assert left == pb.EvacuateServerResponse(sessions=1)
            await viewer.sees(150)
            assert len(there.old.leased(session.id)) == 1

    run(give_up())


@asynccontextmanager
async def followed(
    pocket: OpenedModel, folder: Path, monkeypatch: pytest.MonkeyPatch, managers: int = 1, slots: int = 2
) -> AsyncIterator[Two]:
    """Two servers that look often where the address leads that clients know: to the old one, and seen by both."""
    monkeypatch.setattr(evacuation, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(evacuation, "LOOK_AGAIN_S", 0.02)
    (folder / "operator").write_text("secret\n")
    settings = {"public_address": PUBLIC, "operator_token": folder / "operator", "insecure": True}
    async with two(pocket, folder, managers, slots, **settings) as there:
        there.others.servers[PUBLIC] = there.old.managers[0]
        await until(lambda: all(manager._evacuation._public.is_sure for manager in there.managers))
        yield there


@pytest.mark.parametrize("managers", [1, 2])
def test_all_sessions_go_where_the_address_is_led_that_clients_know(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, managers: int
) -> None:
    async def go() -> None:
        async with followed(pocket, tmp_path, monkeypatch, managers) as there:
            sessions = [await started(manager) for manager in there.old.managers]
            viewers = [Viewer(there.old.managers[0], session) for session in sessions]
            for viewer in viewers:
                await viewer.sees(45)
            there.others.servers[PUBLIC] = there.new.managers[0]
            for session, viewer in zip(sessions, viewers, strict=True):
                seen = await follow(there, viewer, session, 150, told="")
                assert seen == list(range(len(seen)))
            with pytest.raises(SessionMoved, match="at the same address"):
                await created(there.old.managers[0])
            assert await there.new.register.destination() is None

    run(go())


def test_a_client_that_comes_before_its_session_is_told_to_ask_again(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def come_early() -> None:
        async with followed(pocket, tmp_path, monkeypatch) as there:
            (old,), (new,) = there.old.managers, there.new.managers
            session = await started(old)
            there.others.servers[PUBLIC] = new
            with pytest.raises(SessionOnItsWay, match="may be on its way from the server that was"):
                await new.get(session.id, ANNA)
            async with asyncio.timeout(30):
                while not (await new.list(ANNA)):
                    await asyncio.sleep(0.05)
            assert (await new.get(session.id, ANNA)).id == session.id
            monkeypatch.setattr(public_address, "ARRIVE_S", 0.0)
            with pytest.raises(SessionNotFound):
                await new.get("nobody's", ANNA)

    run(come_early())


def test_while_nobody_answers_or_both_do_in_turn_sessions_stay(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def flap() -> None:
        async with followed(pocket, tmp_path, monkeypatch) as there:
            (old,), (new,) = there.old.managers, there.new.managers
            in_turn = [new, old, None, new, new, old]
            looks: defaultdict[object, Iterator[SessionService | None]] = defaultdict(lambda: cycle(in_turn))

            async def describe(_: Others, address: str) -> pb.GetServerInfoResponse:
                if (found := next(looks[asyncio.current_task()])) is None:
                    raise ReplicaLost("nobody answers")
                return await found.server_info(OPERATOR)

            monkeypatch.setattr(Others, "describe", describe)
            for _ in range(150):
                await asyncio.sleep(0.01)
                assert await there.old.register.destination() is None
            assert (await created(old)).id

    run(flap())


def test_a_session_that_the_next_server_cannot_take_yet_stays_and_one_that_is_led_back_is_not_moved(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill() -> None:
        async with followed(pocket, tmp_path, monkeypatch, slots=1) as there:
            await created(there.new.managers[0])
            viewer = Viewer(there.old.managers[0], await started(there.old.managers[0]))
            await viewer.sees(45)
            there.others.servers[PUBLIC] = there.new.managers[0]
            while await there.old.register.destination() is None:
                await asyncio.sleep(0.02)
            with pytest.raises(SessionMoved):
                await created(there.old.managers[0])
            await viewer.sees(105)
            there.others.servers[PUBLIC] = there.old.managers[0]
            while await there.old.register.destination() is not None:
                await asyncio.sleep(0.02)
            assert (await created(there.old.managers[0])).id
            await viewer.sees(150)

    run(fill())


def test_where_an_operator_has_said_to_go_sessions_go_whatever_address_clients_know(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with followed(pocket, tmp_path, monkeypatch) as there:
            await there.evacuate()
            before = await there.old.register.destination()
            there.others.servers[PUBLIC] = there.new.managers[0]
            await asyncio.sleep(0.5)
            there.others.servers[PUBLIC] = there.old.managers[0]
            await asyncio.sleep(0.5)
            assert await there.old.register.destination() == before

    run(go())


def test_nobody_but_operators_evacuates_or_brings_sessions(pocket: OpenedModel, tmp_path: Path) -> None:
    async def try_to() -> None:
        async with two(pocket, tmp_path) as there:
            new = there.new.managers[0]
            for asked in (
                new.evacuate(pb.EvacuateServerRequest(to=OLD), ANNA),
                new.offer(pb.OfferSessionRequest(), ANNA),
                new.import_session(pb.ImportSessionRequest(), ANNA),
                new.settle(pb.SettleTransferRequest(), ANNA),
            ):
                with pytest.raises(NotOperator):
                    await asked

    run(try_to())


def test_what_cannot_be_evacuated_is_refused_in_words(pocket: OpenedModel, tmp_path: Path) -> None:
    async def refused(asked: object, kind: type[ServingError], words: str) -> None:
        with pytest.raises(kind, match=words):
            await asked  # type: ignore[misc]

    async def ask() -> None:
        async with two(pocket, tmp_path) as there:
            old, new = there.old.managers[0], there.new.managers[0]
            await refused(old.evacuate(pb.EvacuateServerRequest(to="new"), OPERATOR), InvalidRequest, "HOST:PORT")
            odd = pb.EvacuateServerRequest(to=NEW, page="javascript:alert(1)")
            await refused(old.evacuate(odd, OPERATOR), InvalidRequest, "page is 'javascript")
            await refused(old.evacuate(pb.EvacuateServerRequest(to=OLD), OPERATOR), InvalidRequest, "this server")
            cluster_of = (await new.server_info(ANNA)).cluster
            meant = pb.OfferSessionRequest(cluster="other", session_id="one")
            await refused(new.offer(meant, OPERATOR), WrongState, "'other' is meant")
            stranger = pb.OfferSessionRequest(cluster=cluster_of, session_id="one", caller="berta")
            await refused(new.offer(stranger, OPERATOR), InvalidRequest, "'berta' has no token here")
            here = await created(new)
            known = pb.OfferSessionRequest(cluster=cluster_of, session_id=here.id)
            await refused(new.offer(known, OPERATOR), WrongState, f"{here.id} is here")
            await created(new)
            await asyncio.sleep(1.0)
            full = pb.OfferSessionRequest(cluster=cluster_of, session_id="one")
            await refused(new.offer(full, OPERATOR), SlotsFull, "no slot is free")
            named = pb.SettleTransferRequest(cluster=cluster_of, session_id="one:2", transfer="x")
            await refused(new.settle(named, OPERATOR), InvalidRequest, "no UUID")

    run(ask())


def test_a_session_that_is_deleted_after_it_has_gone_does_not_come_back(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def delete() -> None:
        async with two(pocket, tmp_path) as there:
            session = await started(there.old.managers[0])
            there.others.lost |= {"send": "answer", "settle": "request"}
            await there.evacuate()
            await until(lambda: there.new.leased(session.id) == ["c"])
            await there.new.managers[0].delete(session.id, ANNA)
            there.others.lost.clear()
            await there.is_done()
            with pytest.raises(SessionNotFound):
                await there.new.managers[0].get(session.id, ANNA)

    run(delete())


def test_the_operators_token_goes_to_another_machine_in_the_clear_only_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "operator"
    path.write_text("secret\n")
    with pytest.raises(WrongState, match="to films:9000 in the clear; start this server with --insecure"):
        asyncio.run(OtherServersByGrpc(path, 1).describe(PUBLIC))
    assert OtherServersByGrpc(path, 1)._at("127.0.0.1:9000")
    assert OtherServersByGrpc(path, 1, insecure=True)._at(PUBLIC)

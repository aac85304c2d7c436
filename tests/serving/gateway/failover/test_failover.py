"""Sessions on real denoisers whose links are slow or cut, and whose processes die."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from serving.errors import ReplicaLost, SessionLost, SessionNotFound, SlotsFull
from serving.gateway.ownership.replica_pool import none_answers
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import TextEncoderStage
from serving.replication.adoption import Adopt
from serving.replication.leases import LeaseConfig
from serving.replication.ownership import Phase
from serving.replication.register import EpochRecord, Record, StandbyEpoch
from serving.weights.loader import OpenedModel
from serving.worker import command_handler
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.gateway.ownership.scenes import ANNA, END, Viewer, created, cue, run, started
from tests.serving.worker.bench import NIGHT, NOON


def test_a_viewer_misses_no_frame_when_a_replica_dies(pocket: OpenedModel, tmp_path: Path) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(45)
            await there.kill(there.owner_of(session.id))
            await viewer.sees(END)
            assert viewer.resumed == 1

    run(die())


class NoTextEncoder(TextEncoderStage):
    """Died with the replica."""

    async def encode(self, text: str) -> Prompt:
        raise none_answers("text encoder")

    def check(self) -> None:
        pass


def test_a_session_goes_on_where_the_text_encoder_is_lost_with_its_replica(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def die() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(45)
            for bench in there.benches.values():
                bench.denoiser._factory._text = NoTextEncoder()
            await there.kill(there.owner_of(session.id))
            await viewer.sees(END)
            assert viewer.resumed == 1

    run(die())


def test_a_session_is_deleted_at_once_while_its_decoder_is_stopped(pocket: OpenedModel, tmp_path: Path) -> None:
    async def delete() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            session = await started(there.managers[0])
            stopped = asyncio.get_running_loop().create_future()
            for method in ("decode", "close"):
                setattr(there.benches["a"].denoiser._decoder, method, lambda *_: asyncio.shield(stopped))
            async with asyncio.timeout(30):
                await there.managers[0].delete(session.id, ANNA)
            assert there.benches["a"].ids == ()
            stopped.set_result(None)

    run(delete())


def test_a_silent_replica_is_replaced_and_its_copy_ends_when_it_speaks_again(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def fall_silent() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(45)
            silent = there.owner_of(session.id)
            there.links[silent].is_cut = True
            await viewer.sees(END)
            assert there.owner_of(session.id) != silent
            there.links[silent].is_cut = False
            await until(lambda: there.copies()[silent] == 0)
            assert (there.benches[silent].denoiser.free, len(there.leased(session.id))) == (2, 1)

    run(fall_silent())


def test_what_comes_while_another_copy_is_committed_is_not_acknowledged(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> bool:
        return await asyncio.Future()

    async def move() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await created(manager)
            owner = there.owner_of(session.id)
            (copy,) = there.benches[owner].denoiser._copies.all
            await until(lambda: copy.feed is not None)
            feed = copy.feed
            assert feed is not None
            assert await feed.replicated(5)
            monkeypatch.setattr(there.register, "create", hang)
            there.links[owner].lost_methods = {"renew"}
            standby = manager._failover._sessions[session.id]
            await until(lambda: standby.ownership.phase is Phase.COMMITTING)
            assert not await feed.replicated(1)

    run(move())


def test_where_all_slots_are_taken_a_session_waits_for_its_replica(pocket: OpenedModel, tmp_path: Path) -> None:
    async def fill() -> None:
        async with cluster(pocket, tmp_path, slots=1) as there:
            sessions = [await started(there.managers[0]) for _ in range(2)]
            viewers = [Viewer(there.managers[0], session) for session in sessions]
            with pytest.raises(SlotsFull):
                await created(there.managers[0])
            await asyncio.gather(*(viewer.sees(33) for viewer in viewers))
            silent = there.owner_of(sessions[0].id)
            there.links[silent].is_cut = True
            await asyncio.sleep(3)
            assert there.leased(sessions[0].id) == []
            there.links[silent].is_cut = False
            await asyncio.gather(*(viewer.sees(END) for viewer in viewers))
            assert (viewers[0].resumed, there.copies()) == (0, {"a": 1, "b": 1})

    run(fill())


def test_viewers_wait_for_as_long_as_a_replica_takes_to_start_where_the_standby_is_there(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def start_again() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            manager = there.managers[0]
            manager._relay._recovery_s = 0.5
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(33)
            there.links["a"].is_cut = True
            await asyncio.sleep(3)
            with pytest.raises(ReplicaLost):
                await manager.get(session.id, ANNA)
            there.links["a"].is_cut = False
            await viewer.sees(END)

    run(start_again())


def test_another_manager_adopts_a_session_and_then_keeps_it_alive(pocket: OpenedModel, tmp_path: Path) -> None:
    async def orphan() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[1], session)
            await viewer.sees(33)
            before = there.owner_of(session.id)
            await there.kill_manager(there.managers[0])
            await until(lambda: session.id in there.managers[1]._failover._sessions)
            await viewer.sees(len(viewer.frames) + 24)
            assert (there.owner_of(session.id), viewer.resumed) == (before, 0)
            await until(lambda: is_full(there.managers[1], session))
            await there.kill(before)
            await viewer.sees(len(viewer.frames) + 24)
            assert viewer.resumed == 1

    run(orphan())


def is_full(manager: SessionService, session: pb.Session) -> bool:
    return manager._failover._sessions[session.id]._copy.is_full


def test_a_session_goes_on_from_what_its_standby_had_where_its_feed_had_broken(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def starve() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer, standby = Viewer(manager, session), manager._failover._sessions[session.id]
            await viewer.sees(33)
            owner = there.owner_of(session.id)
            there.links[owner].lost_methods.add("feed")
            await until(lambda: standby.ownership._is_behind)
            await there.kill(owner)
            await viewer.sees(len(viewer.frames) + 24)
            assert viewer.resumed == 1

    run(starve())


@pytest.mark.parametrize("adopter_dies", [False, True])
def test_a_session_goes_on_from_what_its_standby_had_where_its_adopter_never_got_it(
    pocket: OpenedModel, tmp_path: Path, adopter_dies: bool
) -> None:
    async def keep() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            keeper, adopter = there.managers
            session = await started(keeper)
            viewer = Viewer(keeper, session)
            await viewer.sees(33)
            owned = (await there.register.open_sessions())[session.id]
            there.links[owned.replica].lost_methods.add("feed")
            adopter._failover._standby(session.id, adopt=Adopt(2, replace(owned, standby="manager 1")))
            await until(lambda: session.id in keeper._failover._kept.sessions)
            await there.kill(owned.replica)
            if adopter_dies:
                await there.kill_manager(adopter)
            await viewer.sees(END)
            assert viewer.resumed == 1

    run(keep())


def test_a_session_goes_on_from_what_its_standby_had_where_owner_and_adopter_are_lost_with_their_node(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaseConfig, "copy_wanted_s", 4.0)

    async def keep() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            keeper, adopter = there.managers
            session = await started(keeper)
            owned = (await there.register.open_sessions())[session.id]
            there.links[owned.replica].lost_methods.add("feed")
            adopter._failover._standby(session.id, adopt=Adopt(2, replace(owned, standby="manager 1")))
            await until(lambda: session.id in keeper._failover._kept.sessions)
            await there.lose(owned.replica)
            await there.kill_manager(adopter)
            await until(lambda: bool(there.leased(session.id)))
            await Viewer(keeper, session).sees(33)
            assert (await keeper.get(session.id, ANNA)).prompt == NOON

    run(keep())


def test_a_session_adopted_again_goes_on_from_what_the_manager_in_between_was_told(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_handler, "REPLICATED_WITHIN_S", 10.0)

    async def adopt_again() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            first, between = there.managers
            session = await started(first)
            viewer = Viewer(first, session)
            await viewer.sees(33)
            owned = (await there.register.open_sessions())[session.id]
            between._failover._standby(session.id, adopt=Adopt(2, replace(owned, standby="manager 1")))
            await until(lambda: session.id in first._failover._kept.sessions)
            await until(lambda: between._failover._sessions[session.id].ownership.copy_epoch == 2)
            late = pb.Command(id="late", client_id="anna", schedule_prompt=cue(NIGHT, 81))
            assert (await between.command(session.id, late, ANNA)).replicated
            # It is adopted again, and its owner dies before that manager is fed.
            there.links[owned.replica].lost_methods.add("feed")
            standbys = (StandbyEpoch("manager 0", 1), StandbyEpoch("manager 1", 2))
            again = Adopt(3, replace(owned, standby="manager 0", standbys=standbys))
            kept = first._failover._kept.of(session.id, again.owner, None)
            first._failover._standby(session.id, adopt=again, kept=kept)
            await until(lambda: session.id in between._failover._kept.sessions)
            await there.kill(owned.replica)
            await viewer.sees(END)
            assert (await first.get(session.id, ANNA)).prompt == NIGHT

    run(adopt_again())


def test_viewers_are_told_that_both_copies_are_lost(pocket: OpenedModel, tmp_path: Path) -> None:
    async def lose() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[1], session)
            await viewer.sees(33)
            await there.kill_manager(there.managers[0])
            await there.kill(there.owner_of(session.id))
            there.managers[1]._relay._recovery_s = 2.0
            with pytest.raises(SessionLost, match="nobody has it"):
                await viewer.task

    run(lose())


def test_viewers_at_another_manager_wait_for_a_replica_too_where_the_standby_is_there(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def wait() -> None:
        async with cluster(pocket, tmp_path, replicas="ab", managers=2, slots=1) as there:
            keeper, other = there.managers
            session, second = await started(keeper), await created(keeper)
            viewer = Viewer(other, session)
            await viewer.sees(45)
            other._relay._recovery_s = 1.0
            await there.kill(there.owner_of(session.id))
            await asyncio.sleep(3)
            assert not viewer.task.done()
            await keeper.delete(second.id, ANNA)
            await viewer.sees(END)

    run(wait())


async def again_and_again(manager: SessionService, session: pb.Session) -> None:
    """Watch, and after a second without an end begin once more."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await Viewer(manager, session).task


def test_a_viewer_who_comes_again_and_again_is_told_that_both_copies_are_lost(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def lose() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            session, manager = await started(there.managers[0]), there.managers[1]
            await Viewer(manager, session).sees(33)
            await there.kill_manager(there.managers[0])
            await there.kill(there.owner_of(session.id))
            manager._relay._recovery_s = 8.0
            with pytest.raises(SessionLost, match="nobody has it"):
                await again_and_again(manager, session)
            with pytest.raises(SessionLost, match="nobody has it"):
                async with asyncio.timeout(5):
                    await manager.get(session.id, ANNA)

    run(lose())


def test_a_session_that_is_deleted_while_it_moves_does_not_return(pocket: OpenedModel, tmp_path: Path) -> None:
    async def delete() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(33)
            silent = there.owner_of(session.id)
            there.links[silent].is_cut = True
            await asyncio.sleep(0.7)
            await manager.delete(session.id, ANNA)
            await asyncio.sleep(2)
            there.links[silent].is_cut = False
            await until(lambda: there.copies() == {"a": 0, "b": 0})
            with pytest.raises(SessionNotFound, match="it was deleted"):
                await manager.get(session.id, ANNA)
            viewer.task.cancel()

    run(delete())


def test_a_slow_and_uneven_link_costs_no_frame_and_moves_nothing(pocket: OpenedModel, tmp_path: Path) -> None:
    async def slow() -> None:
        async with cluster(pocket, tmp_path, lease_s=2.0) as there:
            for link in there.links.values():
                link.delay_s, link.jitter_s = 0.03, 0.1
            session = await started(there.managers[0], fps=16)
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(69)
            assert viewer.resumed == 0

    run(slow())


def test_messages_that_are_lost_now_and_then_cost_no_frame(pocket: OpenedModel, tmp_path: Path) -> None:
    async def lossy() -> None:
        async with cluster(pocket, tmp_path) as there:
            session = await started(there.managers[0])
            viewer = Viewer(there.managers[0], session)
            await viewer.sees(9)
            for link in there.links.values():
                link.loss = 0.05
            await viewer.sees(129, seconds=60)

    run(lossy())


def test_a_command_that_waited_while_its_session_moved_is_applied_once(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def command() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(33)
            there.links[there.owner_of(session.id)].is_cut = True
            receipt = await manager.command(session.id, pb.Command(id="n", schedule_prompt=cue(NIGHT)), ANNA)
            await viewer.sees(receipt.frame + 12)
            found = await manager.get(session.id, ANNA)
            assert [applied.cue.prompts[0].text for applied in found.applied] == [NOON, NIGHT]

    run(command())


def test_a_paused_session_goes_on_frame_by_frame_after_its_replica_died(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def pause() -> None:
        async with cluster(pocket, tmp_path) as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(45)
            await manager.command(session.id, pb.Command(pause=pb.Pause()), ANNA)
            await asyncio.sleep(0.3)
            await there.kill(there.owner_of(session.id))
            await manager.command(session.id, pb.Command(resume=pb.Resume()), ANNA)
            await viewer.sees(END)

    run(pause())


def test_two_replicas_that_die_of_one_block_end_its_session(pocket: OpenedModel, tmp_path: Path) -> None:
    async def poison() -> None:
        async with cluster(pocket, tmp_path, replicas="abc") as there:
            manager = there.managers[0]
            session = await started(manager)
            viewer = Viewer(manager, session)
            await viewer.sees(33)
            for _ in range(2):
                await until(lambda: len(there.leased(session.id)) == 1)
                name, killed = there.owner_of(session.id), threading.Event()
                hang_at(there, name, 5, killed)
                await until(lambda: making(manager, session) == 5)
                there.links[name].is_dead = True
                killed.set()
                await there.kill(name)
            with pytest.raises((SessionLost, SessionNotFound), match="replicas died while they made block 5"):
                await viewer.task
            assert there.leased(session.id) == []

    run(poison())


def making(manager: SessionService, session: pb.Session) -> int | None:
    standby = manager._failover._sessions.get(session.id)
    return None if standby is None else standby._copy.making


def hang_at(there: Cluster, name: str, block: int, killed: threading.Event) -> None:
    """Have the replica make a block for as long as it lives."""
    generator = there.benches[name].generator
    whole = generator.generate

    def generate(streams: Sequence[Stream], cancelled: threading.Event | None = None) -> list[Block]:
        if streams[0].blocks == block:
            killed.wait(30)
        return whole(streams, cancelled)

    generator.generate = generate  # type: ignore[method-assign]


def test_a_session_that_nobody_waits_for_ends_though_its_record_was_on_its_way(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def give_up() -> None:
        async with cluster(pocket, tmp_path) as there:
            create, asked, answers = there.register.create, asyncio.Event(), asyncio.Event()
            writes: list[asyncio.Task[bool]] = []

            async def write(session_id: str, epoch: int, record: Record) -> bool:
                await answers.wait()
                return await create(session_id, epoch, record)

            async def slow(session_id: str, epoch: int, record: Record) -> bool:
                writes.append(asyncio.create_task(write(session_id, epoch, record)))
                asked.set()
                return await asyncio.shield(writes[-1])

            monkeypatch.setattr(there.register, "create", slow)
            opening = asyncio.create_task(created(there.managers[0]))
            await asked.wait()
            opening.cancel()
            await asyncio.sleep(0.2)
            answers.set()
            await writes[0]
            await until(lambda: not there.managers[0].is_standby)
            assert await there.register.open_sessions() == {}
            assert set(there.copies().values()) == {0}

    run(give_up())


def test_a_session_that_nobody_waits_for_is_not_put_into_the_register(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def give_up() -> None:
        async with cluster(pocket, tmp_path) as there:
            failover, latest = there.managers[0]._failover, there.register.latest
            for link in there.links.values():
                link.delay_s = 0.1

            async def slow(session_id: str) -> EpochRecord | None:
                top = await latest(session_id)
                await asyncio.sleep(1)
                return top

            monkeypatch.setattr(there.register, "latest", slow)
            opening = asyncio.create_task(created(there.managers[0]))
            await until(lambda: any(one.ownership.phase is Phase.PREPARING for one in failover._sessions.values()))
            opening.cancel()
            await until(lambda: not there.managers[0].is_standby)
            await until(lambda: set(there.copies().values()) == {0})
            assert await there.register.open_sessions() == {}

    run(give_up())


class Broken(Exception):
    """Nobody has foreseen it."""


def breaks(*_: object, **__: object) -> None:
    raise Broken


async def breaks_later() -> None:
    raise Broken


@pytest.mark.parametrize(("step", "failure"), [("tick", breaks), ("_look", breaks_later)])
def test_a_standby_that_fails_is_left_to_who_adopts_it_and_its_neighbour_goes_on(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: Callable[..., object]
) -> None:
    async def fail() -> None:
        async with cluster(pocket, tmp_path, managers=2) as there:
            first, other = there.managers
            session, neighbour = await started(first), await started(first)
            viewers = [Viewer(other, one) for one in (session, neighbour)]
            failed = first._failover._sessions[session.id]
            monkeypatch.setattr(failed, step, failure)
            await until(
                lambda: any(
                    one._failover._sessions.get(session.id) not in (None, failed) for one in there.managers
                )
            )
            assert first._failover.is_standby_of(neighbour.id)
            for viewer in viewers:
                await viewer.sees(END)
            first.check()

    run(fail())


def test_a_manager_is_not_healthy_once_nothing_looks_after_its_sessions(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with cluster(pocket, tmp_path) as there:
            (manager,) = there.managers
            await started(manager)
            manager.check()
            monkeypatch.setattr(manager._failover._renewals, "replicas", breaks_later)
            await asyncio.sleep(1)
            with pytest.raises(RuntimeError, match="the watch over sessions has ended: Broken"):
                manager.check()

    run(fail())

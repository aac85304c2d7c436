"""What a denoiser and the standby of its sessions are to each other: leases, feeds and takeovers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from serving.errors import (
    NoLease,
    ReplicaLost,
    SessionFailed,
)
from serving.gateway.session_snapshot import restored
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.leases import LeaseConfig
from serving.replication.messages import FullState, Role
from serving.replication.standby import StandbyCopy
from serving.session.record_delta import RecordDelta
from serving.session.types import State
from serving.timeline.cue import Blend, Cue, Transition
from serving.weights.loader import OpenedModel
from serving.worker import session_streams
from serving.worker.state.metrics import Following
from tests.serving.worker.bench import (
    MANAGER,
    MAX_BYTES,
    NIGHT,
    NOON,
    SNOW,
    at_work,
    chunks,
    cues,
    events,
    fed,
    next_delta,
    run,
    settled,
    spec,
    start,
    started,
)


def test_a_session_goes_on_elsewhere_from_what_its_standby_knows(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket) as first, at_work(pocket) as second:
            await first.open(spec(pocket), (*cues(NOON, NIGHT), Cue(60, Blend.of(SNOW), Transition(4))))
            watching = asyncio.create_task(chunks(first, "one", 69))
            feeding = asyncio.create_task(fed(first, "one", 69))
            await asyncio.sleep(0)
            await first.denoiser.command("one", start())
            seen, copy = await watching, await feeding
            await second.open(copy.spec, resume=copy.resume_state("its replica was lost"))
            found = await chunks(second, "one", 129)
            assert found[:6] == seen
            assert [unit.frame for chunk in found for unit in chunk.units] == list(range(129))
            frames = [entry.frame for entry in second.denoiser.describe("one").applied]
            assert frames == [0, 33, 69]

    run(move())


def test_a_standby_that_comes_late_has_the_full_state_at_once(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket) as first, at_work(pocket) as second:
            name = await started(first, spec(pocket))
            seen = await chunks(first, name, 57)
            await first.denoiser.command(name, pb.Command(pause=pb.Pause()))
            copy = StandbyCopy()
            async with aclosing(first.denoiser.feed(name, MANAGER)) as items:
                delta = await next_delta(items)
                copy.apply(delta)
            await second.open(copy.spec, resume=copy.resume_state("lost"))
            await second.denoiser.command(name, pb.Command(resume=pb.Resume()))
            found = await chunks(second, name, 129)
            assert found[:5] == seen
            assert [unit.frame for chunk in found for unit in chunk.units] == list(range(129))

    run(move())


def test_viewers_and_sessions_without_a_standby_and_how_far_a_standby_is_behind_are_counted(
    pocket: OpenedModel,
) -> None:
    async def count() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 21)
            copies, now = bench.denoiser._copies, asyncio.get_running_loop().time
            assert copies.following(now()) == Following(viewers=0, unkept=1, lag_s=0.0)
            async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
                await next_delta(items)
                assert copies.following(now()) == Following(viewers=0, unkept=0, lag_s=0.0)
                found = await events(bench, name, lambda event: copies.following(now()).lag_s > 0)
                assert found
                async with aclosing(
                    bench.denoiser.subscribe(name, Role.VIEWER, None, "shared", viewers=3)
                ) as item:
                    await anext(item)
                    assert copies.following(now()).viewers == 3
                behind = copies.following(now() + 60)
                assert behind.lag_s > 60
            assert copies.following(now()).unkept == 1

    run(count())


def test_a_session_that_was_not_started_goes_on_elsewhere(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket) as first, at_work(pocket) as second:
            await first.open(spec(pocket), cues(NOON))
            copy = StandbyCopy()
            async with aclosing(first.denoiser.feed("one", MANAGER)) as items:
                delta = await next_delta(items)
                copy.apply(delta)
            await second.open(copy.spec, resume=copy.resume_state("lost"))
            await second.denoiser.command("one", start())
            assert len(await chunks(second, "one", 21)) == 2

    run(move())


def test_a_reset_forgets_what_the_standby_was_to_be_sent(pocket: OpenedModel) -> None:
    async def reset() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            copy = StandbyCopy()
            async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
                copy.apply(await next_delta(items))
                await chunks(bench, name, 57)
                await bench.denoiser.command(name, pb.Command(reset=pb.Reset()))
                while copy.record is None or copy.record.take == 0:
                    if (delta := (await anext(items)).delta) is not None:
                        copy.apply(delta)
            resume = copy.resume_state("")
            assert (resume.snapshot, resume.chunks, resume.record.next_block) == (None, (), 0)

    run(reset())


def test_without_a_lease_a_copy_makes_and_sends_and_answers_nothing(pocket: OpenedModel) -> None:
    async def lapse() -> None:
        async with at_work(pocket, leases=LeaseConfig(3.0), renews=False) as bench:
            name = await started(bench, spec(pocket, fps=60))
            watching = asyncio.create_task(chunks(bench, name, 297))
            await settled(lambda: not bench.denoiser._copies.has_lease(bench.session(name)))
            await asyncio.sleep(0.2)
            made = bench.session(name).logic.delivered_frames
            with pytest.raises(NoLease):
                await bench.denoiser.command(name, pb.Command(pause=pb.Pause()))
            with pytest.raises(NoLease):
                bench.denoiser.describe(name)
            await asyncio.sleep(0.2)
            assert bench.session(name).logic.delivered_frames == made
            renewing = asyncio.create_task(bench.keep_renewing())
            found = await watching
            assert [unit.frame for chunk in found for unit in chunk.units][:made] == list(range(made))
            renewing.cancel()

    run(lapse())


def test_a_renewal_that_waited_in_a_queue_renews_nothing(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with at_work(pocket, leases=LeaseConfig(0.4), renews=False) as bench:
            await bench.open(spec(pocket), cues(NOON))
            waited = bench.contacts.request(MANAGER, "here", bench.leased.values())
            await asyncio.sleep(0.5)
            bench.denoiser.renew(waited)
            with pytest.raises(NoLease):
                bench.denoiser.describe("one")

    run(wait())


def test_a_copy_that_is_cancelled_while_it_is_made_leaves_nothing(pocket: OpenedModel) -> None:
    async def cancel() -> None:
        async with at_work(pocket) as bench:
            opening = asyncio.create_task(bench.denoiser.prepare("late", spec(pocket), cues(NOON)))
            await asyncio.sleep(0)
            bench.denoiser.cancel("late")
            with pytest.raises(ReplicaLost, match="cancelled while"):
                await opening
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.keys) == (2, 0, ())

    run(cancel())


def test_a_session_that_moves_back_takes_the_slot_of_its_older_copy(pocket: OpenedModel) -> None:
    async def back() -> None:
        async with at_work(pocket, slots=1) as bench:
            await started(bench, spec(pocket))
            await chunks(bench, "one", 33)
            saved = await bench.denoiser.save("one", MAX_BYTES)
            resume = restored(saved, spec(pocket))
            made = await bench.denoiser.prepare("again", spec(pocket), (), resume, epoch=2, owner="elsewhere")
            assert made.attempt == "again"
            assert (bench.denoiser.free, bench.open_runs(), len(bench.decoder.keys)) == (0, 1, 1)

    run(back())


def test_a_copy_that_another_one_has_replaced_tells_its_viewers_to_look_elsewhere(pocket: OpenedModel) -> None:
    async def replace_it() -> None:
        async with at_work(pocket, slots=1) as bench:
            await started(bench, spec(pocket))
            watching = asyncio.create_task(events(bench, "one", lambda event: False))
            await asyncio.sleep(0.1)
            bench.denoiser.drop("one", 0)
            assert bench.ids == ("one",)
            bench.denoiser.drop("one", 2)
            with pytest.raises(ReplicaLost, match="goes on elsewhere"):
                await watching
            assert bench.denoiser.free == 1

    run(replace_it())


def test_there_is_one_standby_and_it_is_the_manager_that_renews(pocket: OpenedModel) -> None:
    async def keep() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket))
            with pytest.raises(NoLease, match="is not the standby"):
                await anext(bench.denoiser.feed("one", "another"))
            first, second = (bench.denoiser.feed("one", MANAGER) for _ in range(2))
            await next_delta(first)
            delta = await next_delta(second)
            assert isinstance(delta.change, FullState)
            with pytest.raises(ReplicaLost, match="another stream feeds"):
                [item async for item in first]
            await second.aclose()

    run(keep())


def test_a_standby_that_was_fed_may_have_a_copy_before_it_says_so(pocket: OpenedModel) -> None:
    async def feed() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket))
            async with aclosing(bench.denoiser.feed("one", MANAGER)) as items:
                await next_delta(items)
            [orphan] = bench.denoiser._copies.leases.orphans(asyncio.get_running_loop().time() + 60)
            assert orphan.copied_at == 1

    run(feed())


def test_a_feed_says_that_its_replica_lives_while_the_session_waits_for_its_decoder(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with at_work(pocket, leases=LeaseConfig(0.4)) as bench:
            await bench.open(spec(pocket), cues(NOON))
            session = bench.denoiser._copies.get("one")
            session.undelivered += 1
            async with aclosing(bench.denoiser.feed("one", MANAGER)) as items:
                assert [(await anext(items)).delta for _ in range(3)] == [None] * 3
                session.undelivered -= 1
                assert isinstance((await next_delta(items)).change, FullState)
            assert session.feed is None

    run(wait())


def test_a_receipt_waits_until_the_standby_has_its_command(pocket: OpenedModel) -> None:
    async def command() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), cues(NOON))
            async with aclosing(bench.denoiser.feed("one", MANAGER)) as items:
                await next_delta(items)
                commanding = asyncio.create_task(bench.denoiser.command("one", start()))
                delta = await next_delta(items)
                assert isinstance(delta.change, RecordDelta)
                assert (delta.wants_ack, delta.change.state, commanding.done()) == (True, State.RUNNING, False)
                bench.denoiser.acknowledge("one", delta.number)
                assert (await commanding).stage == pb.RECEIPT_STAGE_ACCEPTED

    run(command())


def test_what_an_earlier_feed_is_acknowledged_late_is_no_receipt_for_the_next_one(pocket: OpenedModel) -> None:
    later = pb.Command(id="later", pause=pb.Pause())

    async def command() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), cues(NOON))
            async with aclosing(bench.denoiser.feed("one", MANAGER)) as items:
                await next_delta(items)
                first = asyncio.create_task(bench.denoiser.command("one", start()))
                late = await next_delta(items)
                await first
            async with aclosing(bench.denoiser.feed("one", MANAGER)) as items:
                await next_delta(items)
                commanding = asyncio.create_task(bench.denoiser.command("one", later))
                await next_delta(items)
                bench.denoiser.acknowledge("one", late.number)
                assert not (await commanding).replicated

    run(command())


def test_a_stream_that_no_manager_renews_ends_and_counts_no_viewer(pocket: OpenedModel) -> None:
    async def forget() -> None:
        async with at_work(pocket, leases=LeaseConfig(1.0), renews=False) as bench:
            await bench.open(spec(pocket), cues(NOON))
            items = bench.denoiser.subscribe("one", Role.VIEWER, None, "lost")
            await anext(items)
            assert bench.session("one").logic.viewers == 1
            await settled(lambda: bench.session("one").logic.viewers == 0)
            with pytest.raises(ReplicaLost, match="no manager reads"):
                [item async for item in items]

    run(forget())


def test_a_stream_that_is_read_no_more_when_its_copy_gets_a_lease_counts_no_viewer(pocket: OpenedModel) -> None:
    async def come_back() -> None:
        async with at_work(pocket, leases=LeaseConfig(0.4), renews=False) as bench:
            made = await bench.denoiser.prepare("one", spec(pocket), cues(NOON))
            items = bench.denoiser.subscribe("one", Role.VIEWER, None, "lost")
            waiting = asyncio.create_task(anext(items))
            await settled(lambda: not bench.denoiser._copies.leases.streams.is_open("lost") and waiting.done())
            await bench._grant(made)
            bench.renew()
            with pytest.raises(ReplicaLost, match="no manager reads"):
                [item async for item in items]
            assert bench.session("one").logic.viewers == 0

    run(come_back())


def test_a_copy_that_another_one_has_replaced_sends_nothing_of_what_it_has_left(pocket: OpenedModel) -> None:
    async def replace_it() -> None:
        async with at_work(pocket, renews=False) as bench:
            name = await started(bench, spec(pocket, fps=60))
            renewing = asyncio.create_task(bench.keep_renewing())
            items = bench.denoiser.subscribe(name, Role.VIEWER, 0, "slow")
            await anext(items)
            session = bench.session(name)
            await settled(lambda: session.logic.delivered_frames > 33)
            renewing.cancel()
            await settled(lambda: not bench.denoiser._copies.has_lease(session))
            bench.denoiser.drop(name, 5)
            with pytest.raises(ReplicaLost, match="goes on elsewhere"):
                await anext(items)

    run(replace_it())


def test_an_attempt_that_is_asked_for_twice_is_made_once(pocket: OpenedModel) -> None:
    async def ask_again() -> None:
        async with at_work(pocket) as bench:
            asked = (bench.denoiser.prepare("one", spec(pocket), cues(NOON)) for _ in range(2))
            assert [made.attempt for made in await asyncio.gather(*asked)] == ["one"] * 2
            await bench.denoiser.prepare("one", spec(pocket), cues(NOON))
            assert (bench.ids, bench.denoiser.free, bench.open_runs()) == (("one",), 1, 1)
            bench.denoiser.cancel("one")
            await bench.denoiser._copies.settled()
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.keys) == (2, 0, ())

    run(ask_again())


def test_a_copy_that_is_not_made_in_the_time_that_its_caller_has_leaves_nothing(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> None:
        async with at_work(pocket) as bench:
            never = asyncio.get_running_loop().create_future()
            with monkeypatch.context() as hanging:
                hanging.setattr(bench.denoiser._decoder, "open", lambda *_, **__: asyncio.shield(never))
                with pytest.raises(ReplicaLost, match=r"not made within 0\.2 s"):
                    await bench.denoiser.prepare("late", spec(pocket), cues(NOON), epoch=1, within_s=0.2)
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.keys) == (2, 0, ())

    run(hang())


def test_two_standbys_are_sent_the_full_state_at_a_time(pocket: OpenedModel) -> None:
    async def fill() -> None:
        async with at_work(pocket, slots=3, leases=LeaseConfig(0.4)) as bench:
            names = [await started(bench, spec(pocket, name)) for name in ("one", "two", "three")]
            first, second, third = (bench.denoiser.feed(name, MANAGER) for name in names)
            await next_delta(first)
            await next_delta(second)
            assert [(await anext(third)).delta for _ in range(3)] == [None] * 3
            await anext(first)
            assert isinstance((await next_delta(third)).change, FullState)

    run(fill())


def test_a_standby_that_does_not_take_the_full_state_keeps_the_others_waiting_for_a_while(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stand_still() -> None:
        monkeypatch.setattr(session_streams, "FULL_STATE_S", 0.3)
        async with at_work(pocket, slots=3) as bench:
            names = [await started(bench, spec(pocket, name)) for name in ("one", "two", "three")]
            feeds = [bench.denoiser.feed(name, MANAGER) for name in names]
            for feed in feeds:
                assert isinstance((await next_delta(feed)).change, FullState)

    run(stand_still())


def test_an_error_in_feeding_a_standby_ends_the_session_and_is_told(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    async def fail() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), cues(NOON))
            watching = asyncio.create_task(events(bench, "one", lambda _: False))
            feed = bench.denoiser.feed("one", MANAGER)
            await next_delta(feed)
            monkeypatch.setattr(RecordDelta, "between", breaks)
            await bench.denoiser.command("one", start())
            for reading in (next_delta(feed), watching):
                with pytest.raises(SessionFailed, match="replication: ZeroDivisionError"):
                    await reading
            assert bench.ids == ()

    run(fail())

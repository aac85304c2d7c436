"""A denoiser in one event loop, with the pocket model at its smallest size and a decoder beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from engines.streaming import snapshot_format
from engines.streaming.replica_log import PendingDelta, SnapshotDelta
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.deployments.telemetry.metrics import DenoiserMetrics
from serving.errors import (
    ControllerReplaced,
    FrameOutOfRange,
    InvalidRequest,
    LimitReached,
    MemoryFull,
    NoLease,
    ReplicaLost,
    SessionFailed,
    SessionNotFound,
    SlotsFull,
    WrongState,
)
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.video_decoder import VideoDecoder
from serving.protocol.event_queue import MOST_CHUNKS
from serving.replication.leases import LeaseConfig
from serving.replication.messages import FeedItem, FullState, Item, ReplicationDelta, Role, SavedSession
from serving.replication.register import Ended
from serving.replication.standby import StandbyCopy
from serving.session.applied_log import AppliedLog
from serving.session.cue_queue import MAX_PENDING
from serving.session.record_delta import RecordDelta
from serving.session.types import Applied, State, Waiting
from serving.timeline.cue import Blend, Cue, Transition
from serving.weights.loader import OpenedModel
from serving.worker.state.metrics import Following
from tests.serving.worker.bench import (
    MANAGER,
    NIGHT,
    NOON,
    SNOW,
    SPOILT,
    Bench,
    at_work,
    chunks,
    cues,
    events,
    run,
    settled,
    spec,
    start,
    started,
)

MAX_BYTES = 64 << 20


def test_frames_come_once_each_and_in_order(pocket: OpenedModel) -> None:
    async def watch() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket), NOON, NIGHT)
            found = await chunks(bench, name, 81)
            assert [unit.frame for chunk in found for unit in chunk.units] == list(range(81))
            applied = bench.denoiser.describe(name).applied
            assert [entry.frame for entry in applied] == [0, 33]

    run(watch())


def test_one_session_more_than_slots_is_refused_at_once_and_a_free_slot_usable(pocket: OpenedModel) -> None:
    async def fill() -> None:
        async with at_work(pocket, slots=2) as bench:
            for name in ("one", "two"):
                await started(bench, spec(pocket, name))
            began = time.perf_counter()
            with pytest.raises(SlotsFull, match="all 2 sessions of this replica are taken"):
                await bench.open(spec(pocket, "three"))
            assert time.perf_counter() - began < 0.05
            await bench.close("one")
            await bench.open(spec(pocket, "three"))
            assert (bench.open_runs(), len(bench.decoder.keys)) == (2, 2)

    run(fill())


def test_many_who_open_and_fork_at_once_do_not_exceed_the_slots(pocket: OpenedModel) -> None:
    async def rush() -> None:
        async with at_work(pocket, slots=3) as bench:
            await started(bench, spec(pocket))
            await chunks(bench, "one", 33)
            work = [bench.fork("one", frame) for frame in (None, 20, None, 0)]
            opens = [bench.open(spec(pocket, str(number))) for number in range(3)]
            answers = await asyncio.gather(*work, *opens, return_exceptions=True)
            assert sum(isinstance(answer, SlotsFull) for answer in answers) == 5
            assert (bench.denoiser.free, bench.open_runs()) == (0, 3)

    run(rush())


def test_a_session_is_the_same_alone_and_beside_others(pocket: OpenedModel) -> None:
    async def watch() -> None:
        async with at_work(pocket, slots=3, batch=2) as bench:
            alone = await chunks(bench, await started(bench, spec(pocket, "alone"), NOON, SNOW), 69)
            await bench.close("alone")
            for number in range(2):
                await started(bench, spec(pocket, f"other {number}", seed=number), NIGHT, NOON)
            beside = await chunks(bench, await started(bench, spec(pocket, "beside"), NOON, SNOW), 69)
            assert beside == alone

    run(watch())


def test_a_slow_viewer_is_sent_a_gap_and_slows_nobody(pocket: OpenedModel) -> None:
    async def stall() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            slow = bench.denoiser.subscribe(name, Role.VIEWER, 0, "slow")
            assert (await anext(slow)).event is not None
            await chunks(bench, name, 9 + 12 * (MOST_CHUNKS + 2))
            assert bench.session(name).audience.subscribers[0]._queue._chunks <= MOST_CHUNKS
            waiting = [item.event async for item in take_waiting(slow)]
            sent = [pb.Event.FromString(event) for event in waiting if event is not None]
            covered = [(e.gap.first_frame, e.gap.frames) for e in sent if e.HasField("gap")]
            covered += [(e.chunk.first_frame, len(e.chunk.units)) for e in sent if e.HasField("chunk")]
            assert sum(event.HasField("gap") for event in sent) == 1
            assert all(b[0] == a[0] + a[1] for a, b in pairwise(covered))
            await slow.aclose()

    run(stall())


async def take_waiting(items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """All that waits; a sign of life says that nothing does."""
    async for item in items:
        if item == Item():
            return
        yield item


def test_a_session_whose_lease_is_over_is_gone_and_its_room_is_back(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket, lease_s=1.0))
            await settled(lambda: bench.denoiser.free == 2)
            await settled(lambda: bench.open_runs() == 0 and bench.decoder.keys == ())
            with pytest.raises(SessionNotFound):
                bench.denoiser.describe("one")

    run(wait())


def test_a_viewer_keeps_a_session_alive_and_is_told_when_it_is_deleted(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket, lease_s=1.0))
            watching = asyncio.create_task(events(bench, "one", lambda event: False))
            await asyncio.sleep(2.2)
            assert bench.denoiser.describe("one").viewers == 1
            await bench.close("one")
            assert (await watching)[-1].state.state == pb.SESSION_STATE_ENDED

    run(wait())


def test_streams_that_are_opened_and_let_go_leave_nobody_behind(pocket: OpenedModel) -> None:
    async def come_and_go() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket))
            for number in range(300):
                role = list(Role)[number % 3]
                async with aclosing(bench.denoiser.subscribe("one", role, None, str(number))) as items:
                    await anext(items)
                async with aclosing(bench.denoiser.feed("one", MANAGER)) as deltas:
                    await next_delta(deltas)
            session = bench.session("one")
            assert (session.audience.subscribers, session.feed, session.logic.viewers) == ([], None, 0)

    run(come_and_go())


@pytest.mark.parametrize("frame", [None, 30])
def test_a_fork_goes_on_as_the_session_would_have(pocket: OpenedModel, frame: int | None) -> None:
    async def fork() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket), NOON, NIGHT, SNOW)
            await chunks(bench, name, 33)
            fork = await bench.fork(name, frame)
            both = [await chunks(bench, found, 105) for found in (name, fork.id)]
            assert both[0] == both[1]

    run(fork())


def test_a_replay_does_not_run_ahead_of_the_device(pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Arrival:
        """When a block is there: after a while in which no other may be begun."""

        waited = 0

        def synchronize(self) -> None:
            Arrival.waited += 1

    async def fork() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 45)
            await bench.denoiser.command(name, pb.Command(id="pause", pause=pb.Pause()))
            await settled(lambda: not bench.session(name).undelivered)
            whole = bench.generator.generate
            begun: list[int] = []

            def generate(*args: Any) -> list[Block]:
                begun.append(Arrival.waited)
                return [Block(block.number, block.latents, cast(Any, Arrival())) for block in whole(*args)]

            monkeypatch.setattr(bench.generator, "generate", generate)
            await bench.fork(name, 40)
            assert begun == [0, 1, 2]

    run(fork())


def test_a_fork_that_would_take_too_long_is_refused_with_what_would_fit(pocket: OpenedModel) -> None:
    async def fork() -> None:
        async with at_work(pocket, replay_s=1e-6) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 60)
            with pytest.raises(LimitReached, match=r"a fork at frame 50 generates .* the present block, with no"):
                await bench.fork(name, 50)
            assert (bench.denoiser.free, bench.open_runs()) == (1, 1)
            assert (await bench.fork(name, None)).next_frame >= 60

    run(fork())


def test_a_fork_that_nobody_waits_for_any_more_stops_and_leaves_nothing(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fork() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 100)
            whole = bench.generator.generate

            def slow(*arguments: Any) -> list[Block]:
                time.sleep(0.2)
                return whole(*arguments)

            monkeypatch.setattr(bench.generator, "generate", slow)
            forking = asyncio.create_task(bench.denoiser.fork(name, "late", "late", "anna", 90))
            await settled(lambda: bench.open_runs() == 2)
            bench.denoiser.cancel("late")
            with pytest.raises(ReplicaLost, match="cancelled while"):
                await forking
            await settled(lambda: bench.open_runs() == 1)
            assert (bench.denoiser.free, len(bench.decoder.keys)) == (1, 1)

    run(fork())


@pytest.mark.parametrize("changed", [{"height": 30_000, "width": 30_000}, {"window_frames": 10_000}, {"seed": 8}])
def test_a_snapshot_whose_stream_is_not_its_sessions_is_refused_before_anything_is_opened(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
) -> None:
    async def restore() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            saved = await bench.denoiser.save(name, MAX_BYTES)
            assert saved.stream is not None
            _, tensors, facts = snapshot_format.unpack(saved.stream)
            facts["stream"].update(changed)
            forged = saved._replace(stream=snapshot_format.pack("light", tensors, facts))
            monkeypatch.setattr(bench.generator, "open", None)
            other = spec(pocket, "other")
            with pytest.raises(InvalidRequest, match="does not go with its session"):
                await bench.open(other, resume=restored(forged, other))
            assert (bench.denoiser.free, bench.open_runs()) == (1, 1)

    run(restore())


def test_a_fork_from_the_future_is_refused_and_leaves_nothing(pocket: OpenedModel) -> None:
    async def fork() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            with pytest.raises(FrameOutOfRange, match="is not in the past"):
                await bench.fork(name, 100_000)
            assert (bench.denoiser.free, bench.open_runs()) == (1, 1)

    run(fork())


def test_a_saved_session_goes_on_under_another_name(pocket: OpenedModel) -> None:
    async def save() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket), NOON, NIGHT)
            await chunks(bench, name, 45)
            saved = unpack(pack(await bench.denoiser.save(name, MAX_BYTES), MAX_BYTES))
            again = spec(pocket, "again")
            await bench.open(again, resume=restored(saved, again))
            state = bench.denoiser.describe("again")
            assert (state.state, state.next_frame) == (pb.SESSION_STATE_PAUSED, saved.session.next_frame)
            assert state.applied == saved.session.applied
            await bench.denoiser.command("again", pb.Command(resume=pb.Resume()))
            following = await chunks(bench, "again", state.next_frame + 24, state.next_frame)
            assert following[0].first_frame == state.next_frame

    run(save())


def test_a_snapshot_whose_stream_is_of_another_session_is_refused(pocket: OpenedModel) -> None:
    async def save() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 45)
            saved = await bench.denoiser.save(name, MAX_BYTES)
            other = spec(pocket, "other", seed=8)
            with pytest.raises(InvalidRequest, match="does not go with its session"):
                await bench.open(other, resume=restored(saved, other))
            assert (bench.denoiser.free, bench.open_runs()) == (1, 1)

    run(save())


def test_a_session_that_has_not_begun_is_restored_only_where_the_same_loras_are_merged(
    pocket: OpenedModel,
) -> None:
    style = pb.Lora(name="style.pt", weight=0.5, sha256="cafe")
    renamed = pb.Lora(name="renamed.pt", weight=0.5, sha256="cafe")

    async def work(*, there: list[pb.Lora], here: list[pb.Lora]) -> None:
        async with at_work(pocket, provenance=pb.Provenance(loras=here)) as bench:
            saved = SavedSession(pb.Session(provenance=pb.Provenance(loras=there)), None)
            made = await bench.open(spec(pocket), resume=restored(saved, spec(pocket)))
            assert list(made.provenance.loras) == here
            again = await bench.denoiser.save(made.id, MAX_BYTES)
            assert list(again.session.provenance.loras) == here

    run(work(there=[style], here=[renamed]))
    run(work(there=[], here=[pb.Lora(name="off.pt", sha256="beef")]))
    for there, here, said in (
        ([style], [], "0.5 of cafe, here it is none"),
        ([], [style], "none, here it is 0.5 of cafe"),
    ):
        with pytest.raises(
            InvalidRequest, match=f"a server with the LoRAs {said}; restore it where the same ones"
        ):
            run(work(there=there, here=here))


def test_a_reset_session_shows_the_same_again(pocket: OpenedModel) -> None:
    async def reset() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            first = await chunks(bench, name, 33)
            await bench.denoiser.command(name, pb.Command(id="reset", reset=pb.Reset()))
            prompts = [pb.WeightedPrompt(text=NOON)]
            await bench.denoiser.command(name, pb.Command(schedule_prompt=pb.Cue(frame=0, prompts=prompts)))
            await bench.denoiser.command(name, start())
            assert await chunks(bench, name, 33) == first
            assert bench.denoiser.describe(name).take == 1

    run(reset())


async def next_told(stream: AsyncIterator[Item]) -> str | None:
    """The next event that says how a session stands or who steers it, by its name."""
    async for item in stream:
        name = pb.Event.FromString(item.event or b"").WhichOneof("event")
        if name in ("state", "replaced"):
            return name
    return None


def test_the_controller_that_came_last_steers_and_the_one_before_it_is_told(pocket: OpenedModel) -> None:
    async def take_over() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            attach = partial(bench.denoiser.subscribe, name, Role.CONTROLLER, None)
            ann, bea = attach("1", "ann"), attach("2", "bea")
            assert [await next_told(ann), await next_told(bea)] == ["state", "state"]
            assert await next_told(ann) == "replaced"
            back = attach("3", "ann", reattach=True)
            assert [await next_told(back), await next_told(back)] == ["state", "replaced"]
            await bench.denoiser.command(name, pb.Command(pause=pb.Pause()))
            assert await next_told(bea) == "state"
            with pytest.raises(ControllerReplaced):
                await bench.denoiser.command(name, pb.Command(client_id="ann", reset=pb.Reset()), steers=True)
            assert bench.denoiser.describe(name).take == 0
            for stream in (ann, bea, back):
                await stream.aclose()

    run(take_over())


def test_a_reset_that_comes_twice_begins_one_take(pocket: OpenedModel) -> None:
    async def reset() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 9)
            anew = pb.Command(id="anew", client_id="ann", reset=pb.Reset())
            answers = await asyncio.gather(*(bench.denoiser.command(name, anew) for _ in range(3)))
            assert [answer.repeated for answer in answers] == [False, True, True]
            assert bench.denoiser.describe(name).take == 1

    run(reset())


def test_a_session_that_is_deleted_while_it_is_reset_leaves_nothing(pocket: OpenedModel) -> None:
    async def both() -> None:
        async with at_work(pocket) as bench:
            for delay in range(6):
                name = await started(bench, spec(pocket, str(delay)))
                await chunks(bench, name, 9)
                resetting = asyncio.create_task(bench.denoiser.command(name, pb.Command(reset=pb.Reset())))
                await asyncio.sleep(delay * 0.004)
                await bench.close(name)
                await asyncio.gather(resetting, return_exceptions=True)
                await settled(lambda: bench.open_runs() == 0 and bench.decoder.keys == ())

    run(both())


def test_a_block_that_cannot_be_made_ends_its_own_session_only(pocket: OpenedModel) -> None:
    async def spoil() -> None:
        async with at_work(pocket, slots=2, batch=2) as bench:
            good = await started(bench, spec(pocket, "good"), NOON, NIGHT)
            bad = await started(bench, spec(pocket, "bad", seed=8), NOON, SPOILT)
            with pytest.raises(InvalidRequest, match="does not fit"):
                await chunks(bench, bad, 1000)
            assert len(await chunks(bench, good, 105)) == 9
            assert bench.ids == ("good",)
            await settled(lambda: bench.open_runs() == 1)

    run(spoil())


@pytest.mark.parametrize("network", ["passes", "pictures", "text"])
def test_a_session_for_which_there_is_no_memory_ends_alone(
    pocket: OpenedModel, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_denoise = pocket.model.transformer.denoise
    whole_decode, whole_forward = pocket.model.vae.decode, pocket.model.text_encoder.forward
    small = (4, 6)

    def memory_for(shape: Sequence[int]) -> None:
        if tuple(shape) != small:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    def denoise(latents: Tensor, *args: Any) -> Tensor:
        memory_for(latents.shape[-2:])
        return whole_denoise(latents, *args)

    def decode(latents: Tensor, *args: Any) -> Any:
        memory_for(latents.shape[-2:])
        return whole_decode(latents, *args)

    def forward(ids: Tensor, *args: Any) -> Tensor:
        memory_for(small if ids.shape[1] < 60 else ids.shape)
        return whole_forward(ids, *args)

    patched = {
        "passes": (pocket.model.transformer, "denoise", denoise),
        "pictures": (pocket.model.vae, "decode", decode),
        "text": (pocket.model.text_encoder, "forward", forward),
    }[network]
    large = spec(pocket, "large", seed=8)
    large = replace(large, stream=replace(large.stream, height=64))

    async def fill() -> None:
        async with at_work(pocket, slots=2) as bench:
            good = await started(bench, spec(pocket, "good"), NOON)
            bad = await started(bench, large, SNOW * 30 if network == "text" else SNOW)
            with pytest.raises(MemoryFull, match="no memory left for"):
                await chunks(bench, bad, 1000)
            assert len(await chunks(bench, good, 57)) == 5
            assert bench.ids == ("good",)
            await settled(lambda: bench.open_runs() == 1)

    with monkeypatch.context() as patch:
        patch.setattr(*patched)
        run(fill())


def test_a_chunk_leaves_together_with_what_is_new_in_its_stream(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, update = threading.Event(), PendingDelta.update

    def late(delta: PendingDelta) -> SnapshotDelta:
        copied.wait(20)
        return update(delta)

    monkeypatch.setattr(PendingDelta, "update", late)

    async def watch() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), cues(NOON))
            keeping = asyncio.create_task(fed(bench, "one", 21))
            watching = asyncio.create_task(chunks(bench, "one", 21))
            await asyncio.sleep(0)
            await bench.denoiser.command("one", start())
            await settled(lambda: bench.decoder._session("one.one.0").next_block >= 1)
            await asyncio.sleep(0.1)
            assert not bench.session("one").audience.kept
            copied.set()
            mirror, seen = await keeping, await watching
            assert [chunk.first_frame for chunk in seen] == [0, 9]
            assert mirror.resume_state("").snapshot is not None

    run(watch())


def test_a_stage_takes_the_time_that_the_device_says(pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    times: dict[str, list[float]] = {}
    monkeypatch.setattr(DenoiserMetrics, "stage", lambda self, name, s: times.setdefault(name, []).append(s))
    monkeypatch.setattr("serving.worker.blocks.passes.Lap", SetLap)

    async def watch() -> None:
        async with at_work(pocket) as bench:
            await chunks(bench, await started(bench, spec(pocket)), 45)

    run(watch())
    assert set(times["denoise"]) == {0.125}
    assert len(times["denoise"]) >= 4


class SetLap:
    """A lap of a device whose clock says an eighth of a second."""

    seconds = 0.125

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def stop(self) -> None:
        """The device's clock stands."""


def test_a_session_that_cannot_be_opened_leaves_nothing(pocket: OpenedModel) -> None:
    async def overfill() -> None:
        async with at_work(pocket) as bench:
            many = tuple(Cue(frame, Blend.of(NOON)) for frame in range(MAX_PENDING + 1))
            with pytest.raises(LimitReached):
                await bench.open(spec(pocket), many)
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.keys) == (2, 0, ())

    run(overfill())


def test_a_command_that_is_refused_is_raised_and_tells_nobody(pocket: OpenedModel) -> None:
    async def refuse() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            with pytest.raises(WrongState, match="only a paused one can resume"):
                await bench.denoiser.command(name, pb.Command(id="no", resume=pb.Resume()))
            found = await events(bench, name, lambda event: event.chunk.block == 2)
            assert not any(event.receipt.command_id == "no" for event in found)

    run(refuse())


async def next_delta(items: AsyncIterator[FeedItem]) -> ReplicationDelta:
    """Heartbeats before it are left out."""
    async for item in items:
        if item.delta is not None:
            return item.delta
    raise AssertionError("the standby was let go")


async def fed(bench: Bench, name: str, end_frame: int) -> StandbyCopy:
    """What a standby knows once it has the chunk that ends with `end_frame`."""
    copy = StandbyCopy()
    async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
        async for item in items:
            if item.delta is not None:
                copy.apply(item.delta)
                if any(chunk.end_frame >= end_frame for chunk in item.delta.chunks):
                    return copy
    raise AssertionError("the standby was let go")


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
        async with at_work(pocket, renews=False) as bench:
            name = await started(bench, spec(pocket, fps=60))
            watching = asyncio.create_task(chunks(bench, name, 201))
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


@pytest.mark.parametrize("stage", ["decode", "update"])
def test_an_error_that_nobody_foresaw_ends_its_session_and_is_told(
    pocket: OpenedModel, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("not foreseen")

    async def fail() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
                await anext(items)
                await chunks(bench, name, 33)
                monkeypatch.setattr(VideoDecoder if stage == "decode" else PendingDelta, stage, broken)
                with pytest.raises(SessionFailed, match=r"delivering block .*RuntimeError: not foreseen"):
                    await chunks(bench, name, 2000)
            await settled(lambda: (bench.open_runs(), bench.ids) == (0, ()))
            top = await bench.register.latest(name)
            assert top is not None
            assert isinstance(top.record, Ended)

    run(fail())


@pytest.mark.parametrize("method", ["generate", "write_context"])
def test_an_error_that_nobody_foresaw_in_a_pass_ends_one_session_and_no_other(
    pocket: OpenedModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with at_work(pocket, batch=2) as bench:
            for seed, name in enumerate(("one", "two")):
                await started(bench, spec(pocket, name, seed, fps=16))
            both = [asyncio.create_task(chunks(bench, name, 105)) for name in ("one", "two")]
            stream, whole = bench.session("one").stream, getattr(bench.generator, method)

            def broken(streams: Sequence[Any], *arguments: Any) -> Any:
                if any(found is stream for found in streams):
                    raise RuntimeError("no memory")
                return whole(streams, *arguments)

            await settled(lambda: bench.session("one").logic.delivered_frames > 9)
            monkeypatch.setattr(bench.generator, method, broken)
            with pytest.raises(SessionFailed, match="RuntimeError: no memory"):
                await both[0]
            assert [unit.frame for chunk in await both[1] for unit in chunk.units] == list(range(105))
            bench.denoiser.check()

    run(fail())


def prompts_in_every_block(blocks: int) -> tuple[Cue, ...]:
    frames = [0, *range(9, 12 * blocks - 3, 12)]
    return tuple(Cue(frame, Blend.of(NOON if n % 2 else NIGHT)) for n, frame in enumerate(frames))


def test_a_denoiser_that_makes_no_blocks_any_more_is_not_well(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("not foreseen")

    async def fail() -> None:
        async with at_work(pocket) as bench:
            monkeypatch.setattr(bench.denoiser._loop._scheduler, "pick", broken)
            bench.denoiser._wake()
            await asyncio.sleep(0.1)
            with pytest.raises(RuntimeError, match=r"making blocks has ended: RuntimeError\('not foreseen'\)"):
                bench.denoiser.check()
            monkeypatch.setattr(bench.denoiser, "check", lambda: None)

    run(fail())


def test_the_cues_that_have_applied_are_paged_through_until_a_reset(pocket: OpenedModel) -> None:
    async def page_through() -> None:
        async with at_work(pocket) as bench:
            many = prompts_in_every_block(5)
            await bench.open(spec(pocket), many)
            await bench.denoiser.command("one", start())
            await chunks(bench, "one", 57)
            first = bench.denoiser.applied_cues("one", "", 3)
            second = bench.denoiser.applied_cues("one", first.next_page_token, 0)
            assert [entry.cue.frame for entry in (*first.applied, *second.applied)] == [cue.frame for cue in many]
            assert (second.next_page_token, bench.denoiser.describe("one").applied_count) == ("", 5)
            await bench.denoiser.command("one", pb.Command(reset=pb.Reset()))
            with pytest.raises(WrongState, match="has been reset"):
                bench.denoiser.applied_cues("one", first.next_page_token, 0)

    run(page_through())


def test_a_prompt_that_is_too_long_for_the_model_is_told_as_it_applies(pocket: OpenedModel) -> None:
    async def tell() -> None:
        async with at_work(pocket) as bench:
            long = f"{NOON} over the land{' and the sea' * 300}"
            name = await started(bench, spec(pocket), NOON, long)
            found = await events(bench, name, lambda event: event.applied.frame > 0)
            cut = {event.applied.frame: event.applied.cut_tokens for event in found if event.HasField("applied")}
            assert (cut[0], cut[33] > 100) == (0, True)

    run(tell())


def test_whatever_is_pending_a_state_fits_any_client_and_a_snapshot_has_it_all(pocket: OpenedModel) -> None:
    async def ask() -> None:
        async with at_work(pocket) as bench:
            opened = await bench.open(spec(pocket), [Cue(12 * n, Blend.of("x" * 9_800)) for n in range(450)])
            state = bench.denoiser.describe("one")
            kept = bench.session("one").audience.kept_events(None)
            assert max(opened.ByteSize(), state.ByteSize(), len(kept[0])) < 4 << 20
            assert (state.pending_count, 0 < len(state.pending) < 450) == (450, True)
            page = bench.denoiser.pending_cues("one", "", 1000)
            assert (page.pending[0].frame, page.ByteSize() < 4 << 20) == (0, True)
            assert len((await bench.denoiser.save("one", MAX_BYTES)).session.pending) == 450

    run(ask())


@pytest.mark.parametrize(("token", "size"), [("0.99", 0), ("x", 0), ("1", 0), ("", -1), ("", 1001)])
def test_a_page_that_cannot_be_is_refused(pocket: OpenedModel, token: str, size: int) -> None:
    async def ask() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), cues(NOON))
            with pytest.raises(InvalidRequest):
                bench.denoiser.applied_cues("one", token, size)

    run(ask())


def test_a_session_whose_log_cannot_be_written_ends_and_the_others_go_on(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AppliedLog, entry: Applied) -> None:
        raise LimitReached("the log of applied cues cannot be written: No space left on device")

    async def fill() -> None:
        async with at_work(pocket) as bench:
            other = await started(bench, spec(pocket, "other"))
            await chunks(bench, other, 9)
            monkeypatch.setattr(AppliedLog, "append", full)
            name = await started(bench, spec(pocket))
            with pytest.raises(LimitReached, match="No space left"):
                await events(bench, name, lambda _: False)
            assert bench.ids == (other,)
            await chunks(bench, other, 69)

    run(fill())


def test_a_log_too_long_for_a_snapshot_is_refused_before_it_is_written_out(pocket: OpenedModel) -> None:
    async def save() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), prompts_in_every_block(3))
            await bench.denoiser.command("one", start())
            await chunks(bench, "one", 33)
            with pytest.raises(LimitReached, match="cues have applied, too many for the 60 bytes of a snapshot"):
                await bench.denoiser.save("one", 60)

    run(save())


def test_an_unpaced_session_without_reports_pauses_at_what_was_sent_and_says_what_it_waits_for(
    pocket: OpenedModel,
) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 200)
            paused = await bench.denoiser.command(name, pb.Command(pause=pb.Pause()))
            sent = bench.session(name).logic.delivered_frames
            assert sent - 24 <= paused.frame + 1 <= sent
            resumed = await bench.denoiser.command(name, pb.Command(resume=pb.Resume()))
            assert resumed.frame == paused.frame + 1
            told = await events(bench, name, lambda e: e.state.waiting == pb.WAIT_REASON_SHOWN)
            assert told[-1].state.state == pb.SESSION_STATE_RUNNING
            frame = bench.session(name).logic.delivered_frames - 1
            await bench.denoiser.command(name, pb.Command(shown=pb.Shown(frame=frame)))
            on = await events(bench, name, lambda e: e.HasField("state") and not e.state.waiting)
            assert on[-1].state.next_frame > frame + 1

    run(work())


def test_a_paced_session_that_nobody_watches_says_that_it_waits_for_a_viewer(pocket: OpenedModel) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket, fps=16))
            await settled(lambda: bench.session(name).waiting is Waiting.VIEWER)
            assert bench.denoiser.describe(name).waiting == pb.WAIT_REASON_VIEWER
            await chunks(bench, name, 45)
            assert bench.denoiser.describe(name).waiting == pb.WAIT_REASON_UNSPECIFIED

    run(work())


def test_a_session_whose_prompt_is_not_encoded_says_that_it_waits_for_that(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            may_go_on = asyncio.Event()
            encode = bench.denoiser._prompts._text.encode

            async def slow(text: str) -> Prompt:
                await may_go_on.wait()
                return await encode(text)

            monkeypatch.setattr(bench.denoiser._prompts._text, "encode", slow)
            name = await started(bench, spec(pocket))
            await settled(lambda: bench.session(name).waiting is Waiting.PROMPT)
            may_go_on.set()
            await chunks(bench, name, 21)
            await settled(lambda: bench.session(name).waiting is not Waiting.PROMPT)

    run(work())


def test_a_controller_that_will_report_no_more_leaves_the_pace_to_the_clock(pocket: OpenedModel) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket, fps=32))
            controller = bench.denoiser.subscribe(name, Role.CONTROLLER, 0, "steering", "ann")
            await anext(controller)
            await settled(lambda: bench.session(name).logic.delivered_frames > 9)
            await bench.denoiser.command(name, pb.Command(client_id="ann", shown=pb.Shown(frame=0)), steers=True)
            bench.denoiser.reports_ended(name, "somebody else")
            assert bench.session(name).logic._position.is_reported
            bench.denoiser.reports_ended(name, "ann")
            await settled(lambda: bench.session(name).logic.delivered_frames > 60)
            await controller.aclose()

    run(work())


def test_a_controller_always_finds_a_place_and_those_whom_it_replaces_leave_theirs(pocket: OpenedModel) -> None:
    async def attach(bench: Bench, name: str, number: int) -> str:
        stream = bench.denoiser.subscribe(name, Role.CONTROLLER, None, f"stream {number}", f"client {number}")
        try:
            async for _ in stream:
                pass
        except LimitReached as error:
            return str(error)
        return "ended"

    async def work() -> None:
        async with at_work(pocket, viewers=2) as bench:
            name = (await bench.open(spec(pocket), cues(NOON))).id
            attached = []
            for number in range(6):
                attached.append(asyncio.create_task(attach(bench, name, number)))
                await settled(lambda number=number: bench.session(name).logic.controller == f"client {number}")  # type: ignore[misc]
            gone = await asyncio.gather(*attached[:4])
            assert {"no more may" in words for words in gone} == {True}
            assert (bench.session(name).audience.viewers, attached[4].done(), attached[5].done()) == (
                2,
                False,
                False,
            )
            await bench.close(name)
            assert await asyncio.gather(*attached[4:]) == ["ended", "ended"]

    run(work())

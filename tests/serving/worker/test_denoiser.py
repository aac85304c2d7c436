"""A denoiser in one event loop, with the pocket model at its smallest size and a decoder beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor

from engines.device.host_copy import HostCopier
from engines.device.side_stream import SideStream
from engines.streaming.generator import Generator
from engines.streaming.replica_log import PendingDelta, SnapshotDelta
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from engines.vae.frame_decoder import FrameDecoder
from serving.deployments.telemetry.metrics import DenoiserMetrics
from serving.errors import (
    ControllerReplaced,
    FrameOutOfRange,
    InvalidRequest,
    LimitReached,
    MemoryFull,
    SessionNotFound,
    SlotsFull,
    WrongState,
)
from serving.gateway.session_snapshot import pack, restored_record, unpack
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import LocalDecoder, LocalTextEncoder
from serving.pipeline.video_decoder import VideoDecoder
from serving.replication.messages import Item, ResumeState, Role, SessionSpec
from serving.replication.standby import StandbyCopy
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.timeline.cue import Blend, Cue, Transition
from serving.timeline.timeline import MAX_CUES
from serving.weights.loader import OpenedModel, open_model
from serving.worker.denoiser import Denoiser
from serving.worker.subscriber import MOST_CHUNKS
from tests.support.generators import denoiser_for

NOON, NIGHT, SNOW = "a red balloon at noon", "a red balloon at night", "a blue sailboat in falling snow"
SPOILT = "a prompt whose embedding does not fit"


class SpoilingText(LocalTextEncoder):
    """A text encoder that gets one text wrong."""

    async def encode(self, text: str) -> Prompt:
        prompt = await super().encode(text)
        return Prompt(text, torch.zeros(3, 5)) if text == SPOILT else prompt


class Bench(NamedTuple):
    """A denoiser at work, and the decoder behind it."""

    denoiser: Denoiser
    generator: Generator
    decoder: VideoDecoder
    run_tokens: int

    def open_runs(self) -> int:
        windows = self.generator.cache.windows
        return (windows.tokens - windows.free) // self.run_tokens


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return open_model("pocket", tmp_path_factory.mktemp("none"), torch.device("cpu"), torch.float32)


@asynccontextmanager
async def at_work(pocket: OpenedModel, slots: int = 2, batch: int = 1) -> AsyncIterator[Bench]:
    codec = pocket.model.vae
    kept = codec.decoder_receptive_field + 2 * pocket.model.config.stream.block_frames
    generator = denoiser_for(pocket.model.transformer, kept_frames=kept, batch=batch)
    cpu = torch.device("cpu")
    decoder = VideoDecoder(FrameDecoder(codec, SideStream(cpu), HostCopier(cpu)), ChunkEncoder, 2 * slots)
    text = SpoilingText(pocket.prompts, ThreadPoolExecutor(1))
    pictures = LocalDecoder(decoder, ThreadPoolExecutor(1))
    passes = ThreadPoolExecutor(1)
    denoiser = Denoiser(generator, text, pictures, passes, slots=slots, replica="here", metrics=DenoiserMetrics())
    trial = generator.open(spec(pocket).stream)
    run_tokens = trial.lanes[0].window.tokens
    generator.close(trial)
    denoiser.start()
    try:
        yield Bench(denoiser, generator, decoder, run_tokens)
        denoiser.check()
    finally:
        await denoiser.stop()


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 60)

    asyncio.run(bounded())


def spec(pocket: OpenedModel, name: str = "one", seed: int = 7, **pace: float) -> SessionSpec:
    stream = replace(pocket.model.config.stream, seed=seed, height=32, width=48)
    return SessionSpec(name, "anna", "pocket", stream, Pace(**{"fps": 0, **pace}), 0.0)  # type: ignore[arg-type]


def cues(*texts: str) -> tuple[Cue, ...]:
    """One every two blocks."""
    return tuple(Cue(24 * number, Blend.of(text)) for number, text in enumerate(texts))


def start() -> pb.Command:
    return pb.Command(id="start", start=pb.Start())


async def started(bench: Bench, what: SessionSpec, *prompts: str) -> str:
    await bench.denoiser.open(what, cues(*prompts or (NOON,)))
    await bench.denoiser.command(what.session_id, start())
    return what.session_id


async def events(
    bench: Bench, name: str, until: Callable[[pb.Event], bool], from_frame: int | None = 0
) -> list[pb.Event]:
    """What a viewer is sent, up to the first event for which `until` holds."""
    found = []
    async with aclosing(bench.denoiser.subscribe(name, Role.VIEWER, from_frame, may_keep=False)) as items:
        async for item in items:
            if item.event is not None:
                found.append(pb.Event.FromString(item.event))
                if until(found[-1]):
                    break
    return found


async def chunks(bench: Bench, name: str, end_frame: int, from_frame: int = 0) -> list[pb.Chunk]:
    found = await events(bench, name, lambda e: e.chunk.first_frame + len(e.chunk.units) >= end_frame, from_frame)
    return [event.chunk for event in found if event.HasField("chunk")]


async def settled(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


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
                await bench.denoiser.open(spec(pocket, "three"))
            assert time.perf_counter() - began < 0.05
            await bench.denoiser.close("one")
            await bench.denoiser.open(spec(pocket, "three"))
            assert (bench.open_runs(), len(bench.decoder.keys)) == (2, 2)

    run(fill())


def test_many_who_open_and_fork_at_once_do_not_exceed_the_slots(pocket: OpenedModel) -> None:
    async def rush() -> None:
        async with at_work(pocket, slots=3) as bench:
            await started(bench, spec(pocket))
            await chunks(bench, "one", 33)
            work = [bench.denoiser.fork("one", "anna", frame) for frame in (None, 20, None, 0)]
            opens = [bench.denoiser.open(spec(pocket, str(number))) for number in range(3)]
            answers = await asyncio.gather(*work, *opens, return_exceptions=True)
            assert sum(isinstance(answer, SlotsFull) for answer in answers) == 5
            assert (bench.denoiser.free, bench.open_runs()) == (0, 3)

    run(rush())


def test_a_session_is_the_same_alone_and_beside_others(pocket: OpenedModel) -> None:
    async def watch() -> None:
        async with at_work(pocket, slots=3, batch=2) as bench:
            alone = await chunks(bench, await started(bench, spec(pocket, "alone"), NOON, SNOW), 69)
            await bench.denoiser.close("alone")
            for number in range(2):
                await started(bench, spec(pocket, f"other {number}", seed=number), NIGHT, NOON)
            beside = await chunks(bench, await started(bench, spec(pocket, "beside"), NOON, SNOW), 69)
            assert beside == alone

    run(watch())


def test_a_slow_viewer_is_sent_a_gap_and_slows_nobody(pocket: OpenedModel) -> None:
    async def stall() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            slow = bench.denoiser.subscribe(name, Role.VIEWER, 0, may_keep=False)
            assert (await anext(slow)).event is not None
            await chunks(bench, name, 9 + 12 * (MOST_CHUNKS + 2))
            assert bench.denoiser._sessions[name].subscribers[0]._chunks <= MOST_CHUNKS
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
            await bench.denoiser.close("one")
            assert (await watching)[-1].state.state == pb.SESSION_STATE_ENDED

    run(wait())


def test_streams_that_are_opened_and_let_go_leave_nobody_behind(pocket: OpenedModel) -> None:
    async def come_and_go() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket))
            for number in range(500):
                role = [Role.VIEWER, Role.CONTROLLER, Role.RECORDER, Role.STANDBY][number % 4]
                async with aclosing(bench.denoiser.subscribe("one", role, None, may_keep=True)) as items:
                    await anext(items)
            session = bench.denoiser._sessions["one"]
            assert (session.subscribers, session.standby, session.logic.viewers) == ([], None, 0)

    run(come_and_go())


@pytest.mark.parametrize("frame", [None, 30])
def test_a_fork_goes_on_as_the_session_would_have(pocket: OpenedModel, frame: int | None) -> None:
    async def fork() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket), NOON, NIGHT, SNOW)
            await chunks(bench, name, 33)
            fork = await bench.denoiser.fork(name, "anna", frame)
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
            await settled(lambda: not bench.denoiser._sessions[name].undelivered)
            whole = bench.generator.generate
            begun: list[int] = []

            def generate(*args: Any) -> list[Block]:
                begun.append(Arrival.waited)
                return [Block(block.number, block.latents, cast(Any, Arrival())) for block in whole(*args)]

            monkeypatch.setattr(bench.generator, "generate", generate)
            await bench.denoiser.fork(name, "anna", 40)
            assert begun == [0, 1, 2]

    run(fork())


def test_a_fork_from_the_future_is_refused_and_leaves_nothing(pocket: OpenedModel) -> None:
    async def fork() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            with pytest.raises(FrameOutOfRange, match="is not in the past"):
                await bench.denoiser.fork(name, "anna", 100_000)
            assert (bench.denoiser.free, bench.open_runs()) == (1, 1)

    run(fork())


def test_a_saved_session_goes_on_under_another_name(pocket: OpenedModel) -> None:
    async def save() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket), NOON, NIGHT)
            await chunks(bench, name, 45)
            saved = unpack(pack(await bench.denoiser.save(name)))
            again = spec(pocket, "again")
            resume = ResumeState(restored_record(saved, again), saved.stream)
            await bench.denoiser.open(again, resume=resume)
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
            saved = await bench.denoiser.save(name)
            other = spec(pocket, "other", seed=8)
            resume = ResumeState(restored_record(saved, other), saved.stream)
            with pytest.raises(InvalidRequest, match="does not go with its session"):
                await bench.denoiser.open(other, resume=resume)
            assert (bench.denoiser.free, bench.open_runs()) == (1, 1)

    run(save())


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
            attach = partial(bench.denoiser.subscribe, name, Role.CONTROLLER, None, may_keep=False)
            ann, bea = attach(client_id="ann"), attach(client_id="bea")
            assert [await next_told(ann), await next_told(bea)] == ["state", "state"]
            assert await next_told(ann) == "replaced"
            back = attach(client_id="ann", reattach=True)
            assert [await next_told(back), await next_told(back)] == ["state", "replaced"]
            await bench.denoiser.command(name, pb.Command(pause=pb.Pause()))
            assert await next_told(bea) == "state"
            with pytest.raises(ControllerReplaced):
                await bench.denoiser.command(name, pb.Command(reset=pb.Reset()), steers=False)
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
                await bench.denoiser.close(name)
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
            assert bench.denoiser.ids == ("good",)
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
            assert bench.denoiser.ids == ("good",)
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
            await bench.denoiser.open(spec(pocket), cues(NOON))
            keeping = asyncio.create_task(mirrored(bench, "one", 21))
            watching = asyncio.create_task(chunks(bench, "one", 21))
            await asyncio.sleep(0)
            await bench.denoiser.command("one", start())
            await settled(lambda: bench.decoder._session("one.0.0").next_block >= 1)
            await asyncio.sleep(0.1)
            assert not bench.denoiser._sessions["one"].kept
            copied.set()
            mirror, seen = await keeping, await watching
            assert [chunk.first_frame for chunk in seen] == [0, 9]
            assert mirror.resume_state("").snapshot is not None

    run(watch())


def test_a_stage_takes_the_time_that_the_device_says(pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    times: dict[str, list[float]] = {}
    monkeypatch.setattr(DenoiserMetrics, "stage", lambda self, name, s: times.setdefault(name, []).append(s))
    monkeypatch.setattr("serving.worker.block_loop.Lap", SetLap)

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
            many = tuple(Cue(frame, Blend.of(NOON)) for frame in range(MAX_CUES + 1))
            with pytest.raises(LimitReached):
                await bench.denoiser.open(spec(pocket), many)
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


async def mirrored(bench: Bench, name: str, end_frame: int) -> StandbyCopy:
    """What a standby knows once it has the chunk that ends with `end_frame`."""
    mirror = StandbyCopy()
    async with aclosing(bench.denoiser.subscribe(name, Role.STANDBY, None, may_keep=True)) as items:
        async for item in items:
            if item.delta is not None:
                mirror.apply(item.delta)
                if any(chunk.end_frame >= end_frame for chunk in item.delta.chunks):
                    return mirror
    raise AssertionError("the standby was let go")


def test_a_session_goes_on_elsewhere_from_what_its_standby_knows(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket) as first, at_work(pocket) as second:
            what = spec(pocket)
            await first.denoiser.open(what, (*cues(NOON, NIGHT), Cue(60, Blend.of(SNOW), Transition(4))))
            watching = asyncio.create_task(chunks(first, "one", 69))
            keeping = asyncio.create_task(mirrored(first, "one", 69))
            await asyncio.sleep(0)
            await first.denoiser.command("one", start())
            seen, mirror = await watching, await keeping
            again = mirror.resume_state("its replica was lost")
            assert (again.epoch, again.reason) == (1, "its replica was lost")
            await second.denoiser.open(mirror.spec, resume=again)
            found = await chunks(second, "one", 129)
            assert found[:6] == seen
            assert [unit.frame for chunk in found for unit in chunk.units] == list(range(129))
            frames = [entry.frame for entry in second.denoiser.describe("one").applied]
            assert frames == [0, 33, 69]

    run(move())


def test_a_session_that_was_not_started_goes_on_elsewhere(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket) as first, at_work(pocket) as second:
            await first.denoiser.open(spec(pocket), cues(NOON))
            mirror = StandbyCopy()
            async with aclosing(first.denoiser.subscribe("one", Role.STANDBY, None, may_keep=True)) as items:
                item = await anext(items)
                assert item.delta is not None
                mirror.apply(item.delta)
            await second.denoiser.open(mirror.spec, resume=mirror.resume_state("lost"))
            await second.denoiser.command("one", start())
            assert len(await chunks(second, "one", 21)) == 2

    run(move())


def test_a_later_epoch_takes_the_place_of_an_earlier_one(pocket: OpenedModel) -> None:
    async def twice() -> None:
        async with at_work(pocket, slots=2) as bench:
            first = spec(pocket)
            await started(bench, first)
            record = Session(first.pace, first.stream.blocks, 0.0).record(0.0)
            await bench.denoiser.open(first, cues(NOON), ResumeState(record, epoch=1))
            await bench.denoiser.open(first)
            assert bench.denoiser.holds("one") == 1
            await settled(lambda: (bench.open_runs(), len(bench.decoder.keys)) == (1, 1))

    run(twice())


def test_a_session_that_went_on_elsewhere_leaves_its_slot(pocket: OpenedModel) -> None:
    async def give_up() -> None:
        async with at_work(pocket, slots=1) as bench:
            await started(bench, spec(pocket))
            await bench.denoiser.give_up("one", 0)
            assert bench.denoiser.holds("one") == 0
            await bench.denoiser.give_up("one", 1)
            assert (bench.denoiser.holds("one"), bench.denoiser.free) == (-1, 1)
            await bench.denoiser.give_up("unknown", 1)

    run(give_up())


def test_there_is_one_standby_and_another_follows_when_it_leaves(pocket: OpenedModel) -> None:
    async def keep() -> None:
        async with at_work(pocket) as bench:
            await started(bench, spec(pocket))
            first = bench.denoiser.subscribe("one", Role.STANDBY, None, may_keep=True)
            second = bench.denoiser.subscribe("one", Role.VIEWER, None, may_keep=True)
            assert (await anext(first)).delta is not None
            assert [item.delta async for item in take_waiting(second) if item.delta is not None] == []
            await first.aclose()
            while (item := await anext(second)).delta is None:
                pass
            assert item.delta.spec is not None
            await second.aclose()

    run(keep())

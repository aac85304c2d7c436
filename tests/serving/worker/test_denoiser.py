"""A denoiser in one event loop, with the pocket model at its smallest size and a decoder beside it."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from itertools import pairwise

import pytest
import torch

from engines.streaming.replica_log import PendingDelta, SnapshotDelta
from engines.text import cleaning
from serving.deployments.telemetry.metrics import DenoiserMetrics
from serving.errors import (
    ControllerReplaced,
    LimitReached,
    SessionNotFound,
    SlotsFull,
    WrongState,
)
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.event_queue import MOST_CHUNKS
from serving.replication.messages import Item, Role
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import (
    MANAGER,
    NIGHT,
    NOON,
    SNOW,
    Bench,
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
            with pytest.raises(SlotsFull, match="all 2 sessions of this replica are taken"):
                await bench.open(spec(pocket, "three"))
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


def test_a_text_that_takes_long_to_be_cleaned_takes_nobody_elses_time(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned_by: list[threading.Thread] = []
    clean = cleaning.clean_prompt

    def noted(text: str) -> str:
        cleaned_by.append(threading.current_thread())
        return clean(text)

    async def schedule() -> None:
        async with at_work(pocket) as bench:
            name = (await bench.open(spec(pocket), cues(NOON))).id
            for text in ("a blue fish", "a blue fish & a boat"):
                cue = pb.Cue(prompts=[pb.WeightedPrompt(text=text)])
                await bench.denoiser.command(name, pb.Command(id=text, schedule_prompt=cue))

    monkeypatch.setattr(cleaning, "clean_prompt", noted)
    run(schedule())
    assert len(cleaned_by) == 1
    assert cleaned_by[0] is not threading.main_thread()


def test_texts_of_cues_that_were_replaced_are_not_kept(pocket: OpenedModel) -> None:
    async def reschedule() -> None:
        async with at_work(pocket) as bench:
            name = (await bench.open(spec(pocket), cues(NOON))).id
            session = bench.session(name)
            for number in range(20):
                text = f"a red balloon, take {number}"
                cue = pb.Cue(frame=0, prompts=[pb.WeightedPrompt(text=text)])
                await bench.denoiser.command(name, pb.Command(id=str(number), schedule_prompt=cue))
                await settled(partial(operator.contains, session.prompts, text))
            assert set(session.prompts) == {"a red balloon, take 19"}
            await bench.denoiser.command(name, start())
            await chunks(bench, name, 21)
            cue = pb.Cue(prompts=[pb.WeightedPrompt(text=NIGHT)])
            await bench.denoiser.command(name, pb.Command(id="night", schedule_prompt=cue))
            await settled(lambda: set(session.prompts) <= {NIGHT, "a red balloon, take 19"})

    run(reschedule())


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


def test_a_command_that_is_refused_is_raised_and_tells_nobody(pocket: OpenedModel) -> None:
    async def refuse() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            with pytest.raises(WrongState, match="only a paused one can resume"):
                await bench.denoiser.command(name, pb.Command(id="no", resume=pb.Resume()))
            found = await events(bench, name, lambda event: event.chunk.block == 2)
            assert not any(event.receipt.command_id == "no" for event in found)

    run(refuse())


async def attach(bench: Bench, name: str, number: int) -> str:
    """Steer a session; how that ended."""
    stream = bench.denoiser.subscribe(name, Role.CONTROLLER, None, f"stream {number}", f"client {number}")
    try:
        async for _ in stream:
            pass
    except LimitReached as error:
        return str(error)
    return "ended"


def test_few_of_the_controllers_that_were_replaced_look_on(pocket: OpenedModel) -> None:
    async def work() -> None:
        async with at_work(pocket, viewers=100) as bench:
            name = (await bench.open(spec(pocket), cues(NOON))).id
            attached = []
            for number in range(12):
                attached.append(asyncio.create_task(attach(bench, name, number)))
                await settled(lambda number=number: bench.session(name).logic.controller == f"client {number}")  # type: ignore[misc]
            gone = await asyncio.gather(*attached[:3])
            assert {"8 controllers have replaced this one" in words for words in gone} == {True}
            assert [one.done() for one in attached[3:]] == [False] * 9
            await bench.close(name)
            assert await asyncio.gather(*attached[3:]) == ["ended"] * 9

    run(work())


def test_a_controller_always_finds_a_place_and_those_whom_it_replaces_leave_theirs(pocket: OpenedModel) -> None:
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

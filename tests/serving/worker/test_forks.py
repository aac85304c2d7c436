"""Forks and snapshots of a denoiser's sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from engines.streaming import snapshot_format
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.errors import (
    FrameOutOfRange,
    InvalidRequest,
    LimitReached,
    ReplicaLost,
)
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import SavedSession, SessionSpec
from serving.timeline.cue import Blend, Cue, Transition
from serving.weights.loader import OpenedModel
from serving.worker import session_factory
from serving.worker.blocks.scheduler import Scheduler
from tests.serving.worker.bench import (
    MAX_BYTES,
    NIGHT,
    NOON,
    SNOW,
    Bench,
    at_work,
    chunks,
    prompts_in_every_block,
    run,
    settled,
    spec,
    start,
    started,
)


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


def test_a_fork_gets_the_time_that_paced_sessions_leave(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_is_time: list[bool] = []

    def leaves_time(*_: Any, **__: Any) -> bool:
        return bool(there_is_time)

    async def fork() -> None:
        async with at_work(pocket, replay_s=4.0) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 45)
            await bench.denoiser.command(name, pb.Command(id="pause", pause=pb.Pause()))
            monkeypatch.setattr(Scheduler, "leaves_time", leaves_time)
            with pytest.raises(LimitReached, match="at most 4 s are spent"):
                await bench.fork(name, 40)
            there_is_time.append(True)
            assert (await bench.fork(name, 40)).next_frame == 33

    run(fork())


def test_a_restore_waits_a_while_for_the_time_that_paced_sessions_leave(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def restore() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 45)
            saved = await bench.denoiser.save(name, MAX_BYTES)
            await bench.denoiser.command(name, pb.Command(id="pause", pause=pb.Pause()))
            monkeypatch.setattr(Scheduler, "leaves_time", lambda *_, **__: False)
            monkeypatch.setattr(session_factory, "SPARE_S", 1000.0)
            again, more = spec(pocket, "again"), spec(pocket, "more")
            waiting = asyncio.create_task(bench.open(again, resume=restored(saved, again)))
            await asyncio.sleep(0.3)
            assert bench.open_runs() == 1
            monkeypatch.setattr(Scheduler, "leaves_time", lambda *_, **__: True)
            await waiting
            await bench.close("again")
            monkeypatch.setattr(Scheduler, "leaves_time", lambda *_, **__: False)
            monkeypatch.setattr(session_factory, "SPARE_S", 0.1)
            await bench.open(more, resume=restored(saved, more))

    run(restore())


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


@asynccontextmanager
async def in_transitions(pocket: OpenedModel, replay_s: float) -> AsyncIterator[tuple[Bench, SavedSession]]:
    """A bench whose replays have so much time, and a session that another saved in a chain of transitions."""
    chain = [Cue(9 + 12 * number, Blend.of(text), Transition(4)) for number, text in enumerate("abcdefghijklmnop")]
    async with at_work(pocket) as there:
        await there.open(spec(pocket), (Cue(0, Blend.of(NOON)), *chain))
        await there.denoiser.command("one", start())
        await chunks(there, "one", 9 + 12 * len(chain))
        saved = await there.denoiser.save("one", MAX_BYTES)
    async with at_work(pocket, replay_s=replay_s) as here:
        yield here, saved


def slowly(bench: Bench, monkeypatch: pytest.MonkeyPatch, wait: Callable[[], Awaitable[None]]) -> None:
    """Have each text wait before it is encoded."""
    text = bench.denoiser._factory._text
    whole = text.encode

    async def encode(prompt: str) -> Prompt:
        await wait()
        return await whole(prompt)

    monkeypatch.setattr(text, "encode", encode)


async def refused_and_gone(bench: Bench, spec: SessionSpec, saved: SavedSession, why: str) -> None:
    """Require that a snapshot is refused for that reason, and leaves nothing."""
    with pytest.raises(LimitReached, match=why):
        await bench.open(spec, resume=restored(saved, spec))
    assert (bench.denoiser.free, bench.open_runs()) == (2, 0)


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_a_snapshot_whose_prompts_will_take_too_long_is_refused_and_leaves_nothing(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent_s = 0

    async def second() -> None:
        nonlocal spent_s
        spent_s += 1

    async def restore() -> None:
        async with in_transitions(pocket, 10.0) as (bench, saved):
            slowly(bench, monkeypatch, second)
            monkeypatch.setattr(session_factory, "_now", lambda: spent_s)
            why = r"takes about \d+ s, .* at most 10 s .* about 8 steps fit"
            await refused_and_gone(bench, spec(pocket), saved, why)

    run(restore())


def test_a_snapshot_one_of_whose_prompts_takes_too_long_is_refused_and_leaves_nothing(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def restore() -> None:
        async with in_transitions(pocket, 0.5) as (bench, saved):
            slowly(bench, monkeypatch, for_ever)
            why = r"was not rebuilt within 0.5 s: .* try again later"
            await refused_and_gone(bench, spec(pocket), saved, why)

    run(restore())


def test_a_restore_that_nobody_waits_for_any_more_stops_and_leaves_nothing(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def restore() -> None:
        async with in_transitions(pocket, replay_s=20.0) as (bench, saved):
            slowly(bench, monkeypatch, for_ever)
            restoring = asyncio.create_task(bench.open(spec(pocket), resume=restored(saved, spec(pocket))))
            await settled(lambda: bench.open_runs() == 1)
            bench.denoiser.cancel("one")
            with pytest.raises(ReplicaLost, match="cancelled while"):
                await restoring
            await settled(lambda: bench.open_runs() == 0)
            assert bench.denoiser.free == 2

    run(restore())


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


def test_a_log_too_long_for_a_snapshot_is_refused_before_it_is_written_out(pocket: OpenedModel) -> None:
    async def save() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), prompts_in_every_block(3))
            await bench.denoiser.command("one", start())
            await chunks(bench, "one", 33)
            with pytest.raises(LimitReached, match="cues have applied, too many for the 60 bytes of a snapshot"):
                await bench.denoiser.save("one", 60)

    run(save())

"""Sessions that are paused for long: what they give back, and how they come back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from serving.errors import SlotsFull
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.standby import StandbyCopy
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import MANAGER, NIGHT, NOON, Bench, at_work, chunks, run, settled, spec, started

PAUSE, RESUME = pb.Command(id="pause", pause=pb.Pause()), pb.Command(id="resume", resume=pb.Resume())
MAX_BYTES = 64 << 20


async def suspended(bench: Bench, pocket: OpenedModel, name: str = "one") -> str:
    """A session that was paused after some blocks, and has been suspended since."""
    await started(bench, spec(pocket, name), NOON, NIGHT)
    await chunks(bench, name, 57)
    await bench.denoiser.command(name, PAUSE)
    await settled(lambda: bench.denoiser.describe(name).suspended)
    return name


async def goes_on(bench: Bench, name: str, begin: int = 0) -> None:
    """Every frame comes once from the beginning on."""
    end = bench.denoiser.describe(name).current_start_frame + 36
    found = await chunks(bench, name, end, begin)
    frames = [unit.frame for chunk in found for unit in chunk.units]
    assert frames == list(range(begin, frames[-1] + 1))


def test_a_paused_session_gives_its_slot_back_after_a_while_and_takes_one_again(pocket: OpenedModel) -> None:
    async def pause() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            name = await suspended(bench, pocket)
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.free) == (1, 0, 2)
            other = await started(bench, spec(pocket, "other"))
            await chunks(bench, other, 21)
            with pytest.raises(SlotsFull):
                await bench.denoiser.command(name, RESUME)
            described = bench.denoiser.describe(name)
            assert (described.state, described.suspended) == (pb.SESSION_STATE_PAUSED, True)
            await bench.close(other)
            await settled(lambda: bench.denoiser.free == 1)
            await bench.denoiser.command(name, RESUME)
            assert not bench.denoiser.describe(name).suspended
            assert bench.denoiser.free == 0
            await goes_on(bench, name)

    run(pause())


def test_a_session_that_is_not_paused_for_so_long_keeps_its_slot(pocket: OpenedModel) -> None:
    async def pause() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.0) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 21)
            await bench.denoiser.command(name, PAUSE)
            await asyncio.sleep(1.2)
            assert (bench.denoiser.free, bench.denoiser.describe(name).suspended) == (0, False)

    run(pause())


def test_a_suspended_session_takes_cues_and_is_reset_forked_and_saved(pocket: OpenedModel) -> None:
    async def use() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            name = await suspended(bench, pocket)
            fork = await bench.fork(name, None)
            await bench.denoiser.command(fork.id, RESUME)
            await goes_on(bench, fork.id)
            await bench.close(fork.id)
            await settled(lambda: bench.denoiser.free == 1)
            saved = unpack(pack(await bench.denoiser.save(name, MAX_BYTES), MAX_BYTES))
            again = spec(pocket, "again")
            await bench.open(again, resume=restored(saved, again))
            with pytest.raises(SlotsFull):
                await bench.denoiser.command(name, pb.Command(id="reset", reset=pb.Reset()))
            await bench.close("again")
            await settled(lambda: bench.denoiser.free == 1)
            await bench.denoiser.command(name, pb.Command(id="reset", reset=pb.Reset()))
            described = bench.denoiser.describe(name)
            assert (described.take, described.suspended, bench.denoiser.free) == (1, False, 0)

    run(use())


def test_a_suspended_session_goes_on_elsewhere_and_needs_no_slot_until_it_is_resumed(pocket: OpenedModel) -> None:
    async def move() -> None:
        async with at_work(pocket, suspend_after_s=0.1) as first, at_work(pocket, slots=1) as second:
            name = await suspended(first, pocket)
            copy = StandbyCopy()
            async with aclosing(first.denoiser.feed(name, MANAGER)) as items:
                async for item in items:
                    if item.delta is not None:
                        copy.apply(item.delta)
                        break
            other = await started(second, spec(pocket, "other"))
            await second.open(copy.spec, resume=copy.resume_state("its replica was lost"))
            assert (second.denoiser.free, second.denoiser.describe(name).suspended) == (0, True)
            await second.close(other)
            await settled(lambda: second.denoiser.free == 1)
            await second.denoiser.command(name, RESUME)
            await goes_on(second, name)

    run(move())


def test_a_session_whose_decoder_cannot_be_had_stays_suspended(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            name = await suspended(bench, pocket)

            async def full(*_: object, **__: object) -> None:
                raise SlotsFull("no decoder has room")

            with monkeypatch.context() as patched:
                patched.setattr(bench.denoiser._decoder, "open", full)
                with pytest.raises(SlotsFull, match="no decoder has room"):
                    await bench.denoiser.command(name, RESUME)
            assert (bench.denoiser.describe(name).suspended, bench.denoiser.free, bench.open_runs()) == (
                True,
                1,
                0,
            )
            await bench.denoiser.command(name, RESUME)
            await goes_on(bench, name)

    run(fail())


def test_a_session_that_ends_while_it_is_suspended_leaves_nothing(pocket: OpenedModel) -> None:
    async def end() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            await bench.close(await suspended(bench, pocket))
            await bench.denoiser._copies.settled()
            assert (bench.denoiser.free, bench.open_runs(), bench.ids) == (1, 0, ())

    run(end())

"""Sessions that restyle a video and are paused for long."""

from __future__ import annotations

from functools import partial

import pytest

from engines.config.video_stream import Loop
from serving.errors import SlotsFull
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import Bench, at_work, chunks, run, settled, spec, started
from tests.serving.worker.video_bench import LOOPS, Controller, begun, controlled, standing_by, video_spec

PAUSE, RESUME = pb.Command(id="pause", pause=pb.Pause()), pb.Command(id="resume", resume=pb.Resume())
MAX_BYTES = 64 << 20


async def suspended(bench: Bench, controller: Controller) -> None:
    """The session has shown 17 pictures, and has neither a slot nor anything on the device any more."""
    await controller.push(range(17))
    await settled(lambda: bench.session(controller.name).logic.next_block == 4)
    await controller.command(PAUSE)
    await settled(lambda: bench.denoiser.describe(controller.name).suspended)
    assert (bench.denoiser.free, bench.open_runs(), controller.frames) == (1, 0, 17)
    assert controller.session_input.state is None


async def goes_on(controller: Controller) -> None:
    """With the next frame, and with the pictures that come now."""
    first = controller.frames
    await controller.push(range(70, 78))
    controller.end_input()
    await settled(lambda: controller.frames >= first + 8)
    frames = [unit.frame for chunk in controller.chunks for unit in chunk.units]
    assert frames == list(range(frames[0], frames[0] + len(frames)))
    assert controller.pictures[first:] == list(range(1070, 1078))


@LOOPS
def test_a_paused_session_gives_its_slot_back_after_a_while_and_takes_one_again(
    pocket: OpenedModel, loop: Loop
) -> None:
    async def pause() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller:
                await suspended(bench, controller)
                other = await started(bench, spec(pocket, "other"))
                await chunks(bench, other, 21)
                with pytest.raises(SlotsFull):
                    await controller.command(RESUME)
                assert bench.denoiser.describe(name).suspended
                await bench.close(other)
                await settled(lambda: bench.denoiser.free == 1)
                await controller.command(RESUME)
                assert (bench.denoiser.free, bench.denoiser.describe(name).suspended) == (0, False)
                await goes_on(controller)

    run(pause())


def test_pictures_that_wait_as_it_is_suspended_are_dropped(pocket: OpenedModel) -> None:
    async def pause() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller:
                await controller.push(range(7))
                await suspended_after(bench, controller, blocks=1)
                assert (controller.session_input.waiting, controller.session_input.dropped) == (0, 2)
                await controller.command(RESUME)
                await goes_on(controller)

    run(pause())


async def suspended_after(bench: Bench, controller: Controller, blocks: int) -> None:
    await settled(lambda: bench.session(controller.name).logic.next_block == blocks)
    await controller.command(PAUSE)
    await settled(lambda: bench.denoiser.describe(controller.name).suspended)


def test_a_suspended_session_is_forked_saved_and_reset(pocket: OpenedModel) -> None:
    async def use() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller:
                await suspended(bench, controller)
                fork = await bench.fork(name, None)
                await bench.denoiser.command(fork.id, RESUME)
                async with controlled(bench, fork.id) as other:
                    await goes_on(other)
                await bench.close(fork.id)
                await settled(lambda: bench.denoiser.free == 1)
                saved = unpack(pack(await bench.denoiser.save(name, MAX_BYTES), MAX_BYTES))
                again = video_spec(pocket, "again")
                await bench.open(again, resume=restored(saved, again))
                await bench.close("again")
                await settled(lambda: bench.denoiser.free == 1)
                await controller.command(pb.Command(id="reset", reset=pb.Reset()))
                described = bench.denoiser.describe(name)
                assert (described.take, described.suspended, bench.denoiser.free) == (1, False, 0)

    run(use())


@LOOPS
def test_a_suspended_session_goes_on_elsewhere_and_needs_no_slot_until_it_is_resumed(
    pocket: OpenedModel, loop: Loop
) -> None:
    async def move() -> None:
        one_slot = partial(at_work, pocket, slots=1, suspend_after_s=0.1, video_loop=loop)
        async with one_slot() as first, one_slot() as second:
            name = await begun(first, video_spec(pocket))
            async with controlled(first, name) as controller, standing_by(first, name) as copy:
                await suspended(first, controller)
                await settled(lambda: copy.record is not None and copy.record.suspended)
            busy = await started(second, spec(pocket, "busy"))
            await second.open(copy.spec, resume=copy.resume_state("its replica was lost"))
            assert (second.denoiser.free, second.denoiser.describe(name).suspended) == (0, True)
            await second.close(busy)
            await settled(lambda: second.denoiser.free == 1)
            await second.denoiser.command(name, RESUME)
            async with controlled(second, name) as controller:
                await settled(lambda: controller.frames > 0)
                await goes_on(controller)

    run(move())


def test_one_that_is_suspended_before_its_first_picture_begins_with_the_next(pocket: OpenedModel) -> None:
    async def pause() -> None:
        async with at_work(pocket, slots=1, suspend_after_s=0.1) as bench:
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller:
                await suspended_after(bench, controller, blocks=0)
                await controller.command(RESUME)
                await controller.push(range(5))
                await settled(lambda: controller.frames >= 5)
                assert controller.pictures == list(range(1000, 1005))

    run(pause())

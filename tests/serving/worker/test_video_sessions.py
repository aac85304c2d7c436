"""Sessions that restyle the pictures that their controller sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch

from engines.config.video_stream import Loop, VideoStreamConfig
from engines.streaming.state import Block
from engines.video.builder import build_input_encoder
from engines.video.generator import VideoGenerator
from engines.video.stream import VideoStream
from serving.errors import ControllerReplaced, InvalidRequest, ReplicaLost, WrongState
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.media.chunk import Chunk
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import LocalDecoder
from serving.replication.messages import HandedOver, ResumeState, Role, SessionSpec
from serving.replication.standby import StandbyCopy
from serving.session.pacing import Pace
from serving.timeline.cue import Blend, Cue, Restyling
from serving.weights.loader import OpenedModel
from serving.worker.blocks import video_loops
from serving.worker.capacity import loop_choice
from serving.worker.capacity.capacity import Capacity, Load
from serving.worker.state.active_session import ActiveSession
from tests.serving.worker.bench import MANAGER, NIGHT, NOON, Bench, at_work, cues, run, settled, start
from tests.serving.worker.pictures.clips import encoded, h264, picture, png
from tests.support.generators import generator_for

ANNA = "anna's page"


LOOPS = pytest.mark.parametrize("loop", ["plain", "batch"])


def video_spec(pocket: OpenedModel, name: str = "one", seed: int = 7) -> SessionSpec:
    video = pocket.model.config.video
    assert video is not None
    stream = replace(video, seed=seed, height=32, width=48, loop="plain")
    return SessionSpec(name, "anna", "pocket", stream, Pace(), 0.0)


class Controller:
    """Follows a session as the one who steers it."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.events: list[pb.Event] = []

    @property
    def session(self) -> ActiveSession:
        return self.bench.session(self.name)

    @property
    def chunks(self) -> list[pb.Chunk]:
        return [event.chunk for event in self.events if event.HasField("chunk")]

    @property
    def frames(self) -> int:
        return sum(len(chunk.units) for chunk in self.chunks)

    @property
    def pictures(self) -> list[int]:
        """Of each frame."""
        return [unit.picture for chunk in self.chunks for unit in chunk.units]

    @property
    def input(self) -> pb.InputProgress:
        return next(event.progress.input for event in reversed(self.events) if event.HasField("progress"))

    async def command(self, command: pb.Command) -> pb.Receipt:
        """One that is answered."""
        return await self.bench.denoiser.command(self.name, command)

    def send(self, *commands: pb.Command, dropped: int = 0) -> None:
        self.bench.denoiser.take_pictures(self.name, ANNA, commands, dropped)

    @property
    def applied(self) -> list[pb.AppliedCue]:
        return [event.applied for event in self.events if event.HasField("applied")]

    async def push(self, numbers: Iterable[int], height: int = 96, width: int = 160) -> None:
        """PNG pictures, no faster than they are restyled."""
        for number in numbers:
            self.send(png(number, height, width))
            await at_rest(self.bench, self.name)

    async def read(self) -> None:
        stream = f"controller {self.name} {next(self.bench.streams)}"
        kept_from = self.bench.session(self.name).audience.oldest_frame
        items = self.bench.denoiser.subscribe(self.name, Role.CONTROLLER, kept_from, stream, ANNA)
        async with aclosing(items):
            async for item in items:
                if item.event is not None:
                    self.events.append(pb.Event.FromString(item.event))


async def at_rest(bench: Bench, name: str) -> None:
    """Until nothing is to be done with the pictures that have come, and there is room for a block of them."""
    session_input = bench.session(name).input
    assert session_input is not None
    await settled(lambda: session_input.is_at_rest and len(session_input._shown) < 5)


@asynccontextmanager
async def controlled(bench: Bench, name: str) -> AsyncIterator[Controller]:
    controller = Controller(bench, name)
    reading = asyncio.create_task(controller.read())
    await settled(lambda: bool(controller.events))
    try:
        yield controller
    finally:
        reading.cancel()


async def begun(bench: Bench, what: SessionSpec, *prompts: str) -> str:
    await bench.open(what, cues(*prompts or (NOON,)))
    await bench.denoiser.command(what.session_id, start())
    return what.session_id


@asynccontextmanager
async def restyling(pocket: OpenedModel, **options: Any) -> AsyncIterator[Controller]:
    """A session that has been started, on a denoiser of its own, and who steers it."""
    async with at_work(pocket, **options) as bench:
        name = await begun(bench, video_spec(pocket))
        async with controlled(bench, name) as controller:
            yield controller


def test_every_frame_is_made_of_a_picture_and_says_which(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(17))
            await settled(lambda: controller.frames >= 17)
            assert [len(chunk.units) for chunk in controller.chunks] == [5, 4, 4, 4]
            assert controller.pictures == list(range(1000, 1017))
            assert (controller.input.received, controller.input.dropped) == (17, 0)

    run(restyle())


@pytest.mark.parametrize("steps", [(850,), (850, 500), (850, 750, 500, 250)], ids=["1", "2", "4"])
@LOOPS
def test_the_frames_are_those_that_the_engine_makes_of_the_same_pictures(
    pocket: OpenedModel, loop: Loop, steps: tuple[int, ...]
) -> None:
    usual, sent = video_spec(pocket), list[bytes]()
    spec = replace(usual, stream=replace(usual.stream, steps=steps))

    async def restyle() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, spec)
            async with controlled(bench, name) as controller:
                for number in range(17):
                    data = encoded(picture(number, 32, 48))
                    shown = pb.Picture(id=number, time_us=62_500 * number, format=pb.PICTURE_FORMAT_PNG, data=data)
                    controller.send(pb.Command(picture=shown))
                    await at_rest(bench, name)
                controller.send(pb.Command(end_input=pb.EndInput()))
                await settled(lambda: controller.frames >= 17)
                assert controller.pictures == list(range(17))
                sent.extend(unit.data for chunk in controller.chunks for unit in chunk.units)

    run(restyle())
    generator = generator_for(pocket.model)
    video, encoder = VideoGenerator(generator), build_input_encoder(pocket.model)
    assert isinstance(spec.stream, VideoStreamConfig)
    opened = video.open(replace(spec.stream, loop=loop))
    video.set_prompt(opened, pocket.prompts.encode(NOON))
    pictures = torch.stack([torch.from_numpy(picture(number, 32, 48)) for number in range(17)])
    state, blocks, made = encoder.start(opened.config), list[Block](), []
    for group in (pictures[:5], *pictures[5:].split(4)):
        inputs, state = encoder.encode(opened.config, group, state)
        blocks += [block for block in video.generate([opened], inputs) if block is not None]
    for block in (*blocks, *video.flush(opened)):
        frames = video.decode(opened, block).numpy()
        made += [unit.data for unit in ChunkEncoder(32, 48).encode(block.number, 0, frames).units]
    assert sent == made


@LOOPS
def test_a_prompt_changes_the_next_block(pocket: OpenedModel, loop: Loop) -> None:
    async def restyle() -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await controller.push(range(9))
            cue = pb.Cue(prompts=[pb.WeightedPrompt(text=NIGHT)])
            await controller.command(pb.Command(id="night", schedule_prompt=cue))
            await controller.push(range(9, 21))
            await settled(lambda: controller.frames >= 17)
            assert [cue.cue.prompts[0].text for cue in controller.applied] == [NOON, NIGHT]
            assert controller.applied[1].frame in (5, 9, 13)

    run(restyle())


def test_pictures_that_come_too_fast_are_dropped_and_counted(pocket: OpenedModel) -> None:
    async def flood() -> None:
        async with restyling(pocket) as controller:
            controller.send(*(png(number) for number in range(200)), dropped=3)
            await settled(lambda: controller.frames >= 9)
            await asyncio.sleep(0.2)
            assert controller.input.received == 200
            assert controller.input.dropped == 203 - len(set(controller.pictures)) - _left(controller.session)
            assert sorted(controller.pictures) == controller.pictures

    run(flood())


def _left(session: ActiveSession) -> int:
    """Pictures that wait for the rest of their block."""
    session_input = session.input
    assert session_input is not None
    return len(set(session_input._shown))


@LOOPS
def test_the_end_of_the_pictures_fills_the_last_block(pocket: OpenedModel, loop: Loop) -> None:
    async def end() -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await controller.push(range(7))
            controller.send(pb.Command(end_input=pb.EndInput()))
            await settled(lambda: controller.frames >= 9)
            assert controller.pictures == [*range(1000, 1007), 1006, 1006]
            await controller.push(range(100, 108))
            await settled(lambda: controller.frames >= 13)
            assert controller.pictures[9:13] == [1100, 1101, 1102, 1103]

    run(end())


def test_who_sends_nothing_for_a_second_is_waited_for(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with restyling(pocket) as controller:

            def reasons() -> list[int]:
                return [event.state.waiting for event in controller.events if event.HasField("state")]

            await settled(lambda: pb.WAIT_REASON_INPUT in reasons())
            await controller.push(range(5))
            await settled(lambda: reasons()[-1] == pb.WAIT_REASON_UNSPECIFIED)

    run(wait())


def test_pictures_that_come_while_the_session_is_paused_are_dropped(pocket: OpenedModel) -> None:
    async def pause() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(5))
            await settled(lambda: controller.frames >= 5)
            await controller.command(pb.Command(id="pause", pause=pb.Pause()))
            controller.send(*(png(number) for number in range(5, 9)))
            await controller.command(pb.Command(id="resume", resume=pb.Resume()))
            await controller.push(range(20, 24))
            await settled(lambda: controller.frames >= 9)
            assert controller.pictures[5:] == [1020, 1021, 1022, 1023]
            assert controller.input.dropped == 4

    run(pause())


def test_pictures_of_a_session_that_has_ended_are_left_where_they_are(pocket: OpenedModel) -> None:
    async def end() -> None:
        async with restyling(pocket) as controller:
            session_input = controller.session.input
            assert session_input is not None
            controller.send(*(png(number) for number in range(12)))
            await controller.bench.close(controller.name)
            await settled(lambda: session_input.working is None)
            assert session_input.waiting >= 11

    run(end())


def test_a_stream_of_a_camera_is_sampled(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            for number, unit in enumerate(h264(30)):
                sent = pb.Picture(id=number, time_us=number * 33_333, format=pb.PICTURE_FORMAT_H264, data=unit)
                controller.send(pb.Command(picture=sent))
                await at_rest(controller.bench, controller.name)
            await settled(lambda: controller.frames >= 13)
            assert controller.pictures[:9] == [0, 1, 3, 5, 7, 9, 11, 13, 15]
            assert (controller.input.broken, controller.input.dropped) == (0, 0)

    run(restyle())


def test_a_session_without_pictures_refuses_them_and_so_does_one_that_another_steers(pocket: OpenedModel) -> None:
    async def refuse() -> None:
        async with at_work(pocket, slots=3) as bench:
            name = await begun(bench, video_spec(pocket))
            with pytest.raises(ControllerReplaced):
                bench.denoiser.take_pictures(name, "another page", [png(1)], 0)
            text = replace(
                video_spec(pocket, "two"), stream=replace(pocket.model.config.stream, height=32, width=48)
            )
            await bench.open(text, cues(NOON))
            with pytest.raises(InvalidRequest, match="takes no pictures"):
                bench.denoiser.take_pictures("two", ANNA, [png(1)], 0)
            with pytest.raises(InvalidRequest, match="present block"):
                await bench.fork(name, 0)

    run(refuse())


async def follow(bench: Bench, name: str, copy: StandbyCopy) -> None:
    """Have a copy stand by for as long as this runs."""
    async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
        async for item in items:
            if item.delta is not None:
                copy.apply(item.delta)
                bench.denoiser.acknowledge(name, item.delta.number)


@LOOPS
def test_a_standby_goes_on_with_the_next_block(pocket: OpenedModel, loop: Loop) -> None:
    resumed: list[ResumeState] = []
    frames: list[int] = []

    async def lose() -> None:
        copy = StandbyCopy()
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))

            following = asyncio.create_task(follow(bench, name, copy))
            async with controlled(bench, name) as controller:
                await controller.push(range(17))
                await settled(lambda: controller.frames >= 13)
                await bench.denoiser.command(name, restyled_cue(noise_scale=0.7))
                await controller.push(range(17, 21))
                out = 21 if loop == "plain" else 17
                await settled(lambda: copy.record is not None and copy.record.delivered_frames >= out)
            following.cancel()
            resumed.append(copy.resume_state("lost"))

    async def go_on() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            await bench.open(video_spec(pocket), resume=resumed[0])
            async with controlled(bench, "one") as controller:
                await controller.push(range(21, 29))
                controller.send(pb.Command(end_input=pb.EndInput()))
                await settled(lambda: controller.frames >= 29)
                assert controller.pictures == list(range(1000, 1029))
                assert set(mixed(bench, "one").values()) == {0.85, 0.7}
                assert mixed(bench, "one")[6] == 0.7
                frames.extend(chunk.first_frame for chunk in controller.chunks)

    run(lose())
    assert [len(block.ids) for block in resumed[0].pictures] == [4] * 4
    run(go_on())
    assert frames == [0, 5, 9, 13, 17, 21, 25]


@LOOPS
def test_a_fork_goes_on_with_pictures_of_its_own(pocket: OpenedModel, loop: Loop) -> None:
    async def fork() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller:
                await controller.push(range(9))
                await settled(lambda: bench.session(name).logic.next_block == 2)
                forked = await bench.fork(name, None)
                await settled(lambda: controller.frames == 9)
            async with controlled(bench, forked.id) as other:
                await other.push(range(50, 58))
                await settled(lambda: other.frames >= 13)
                assert other.pictures[9:13] == [1050, 1051, 1052, 1053]

    run(fork())


def test_a_session_goes_on_from_a_clients_snapshot_with_new_pictures(pocket: OpenedModel) -> None:
    async def restore() -> None:
        async with at_work(pocket) as bench:
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller:
                await controller.push(range(9))
                await settled(lambda: controller.frames >= 9)
                saved = unpack(pack(await bench.denoiser.save(name, 64 << 20), 64 << 20))
            assert saved.session.options.input == pb.INPUT_KIND_VIDEO
            again = video_spec(pocket, "again")
            await bench.open(again, resume=restored(saved, again))
            await bench.denoiser.command("again", pb.Command(id="resume", resume=pb.Resume()))
            async with controlled(bench, "again") as other:
                await other.push(range(70, 74))
                await settled(lambda: other.frames >= 4)
                assert [chunk.first_frame for chunk in other.chunks] == [9]

    run(restore())


def test_reset_begins_with_the_next_pictures(pocket: OpenedModel) -> None:
    async def reset() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(7))
            await controller.command(pb.Command(id="reset", reset=pb.Reset()))
            with pytest.raises(WrongState):
                await controller.bench.denoiser.command(
                    controller.name, pb.Command(id="start 2", start=pb.Start())
                )
            cue = pb.Cue(frame=0, prompts=[pb.WeightedPrompt(text=NIGHT)])
            await controller.command(pb.Command(id="night", schedule_prompt=cue))
            await controller.command(pb.Command(id="start 3", start=pb.Start()))
            await controller.push(range(30, 35))
            await settled(lambda: controller.events[-1].take == 1 and controller.chunks[-1].first_frame == 0)
            await settled(lambda: controller.pictures[-5:] == [1030, 1031, 1032, 1033, 1034])

    run(reset())


def restyled_cue(**restyling: object) -> pb.Command:
    cue = pb.Cue(prompts=[pb.WeightedPrompt(text=NOON)], restyling=pb.Restyling(**restyling))  # type: ignore[arg-type]
    return pb.Command(id="restyled", schedule_prompt=cue)


def mixed(bench: Bench, name: str) -> dict[int, float]:
    """The noise of each block's input."""
    stream = bench.session(name).stream
    assert isinstance(stream, VideoStream)
    return {kept.number: kept.input.noise_scale for kept in stream.inputs}


def test_another_share_of_noise_holds_from_the_block_at_which_its_cue_applies(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(9))
            await settled(lambda: controller.frames >= 9)
            receipt = await controller.command(restyled_cue(noise_scale=0.6))
            await controller.push(range(9, 21))
            await settled(lambda: controller.frames >= 21)
            assert receipt.frame == 9
            assert mixed(controller.bench, controller.name) == {0: 0.85, 1: 0.85, 2: 0.6, 3: 0.6, 4: 0.6}

    run(restyle())


def test_a_sink_is_renewed_with_the_block_at_which_its_cue_applies(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(9))
            await settled(lambda: controller.frames >= 9)
            await controller.command(restyled_cue(renews_sink=True))
            await controller.push(range(9, 17))
            await settled(lambda: controller.frames >= 17)
            stream = controller.session.stream
            assert isinstance(stream, VideoStream)
            assert {kept.number: kept.renews for kept in stream.inputs} == {
                0: False,
                1: False,
                2: True,
                3: False,
            }

    run(restyle())


CUT = pb.Command(id="cut", cut=pb.Cut())


def opening(bench: Bench, name: str) -> int:
    """The block with which the session's video opened last."""
    return stream_of(bench, name).opening


@LOOPS
def test_a_cut_opens_the_video_anew_with_the_next_pictures_and_no_frame_is_lost(
    pocket: OpenedModel, loop: Loop
) -> None:
    async def cut() -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await controller.push(range(13))
            await settled(lambda: controller.session.logic.next_block == 3)
            receipt = await controller.command(CUT)
            assert (receipt.command, receipt.frame) == (pb.COMMAND_KIND_CUT, 13)
            await settled(lambda: controller.frames == 13)
            await controller.push(range(13, 29))
            controller.send(pb.Command(end_input=pb.EndInput()))
            await settled(lambda: controller.frames == 29)
            assert [len(chunk.units) for chunk in controller.chunks] == [5, 4, 4, 4, 4, 4, 4]
            assert controller.pictures == list(range(1000, 1029))
            assert opening(controller.bench, controller.name) == 3
            told = [event.receipt for event in controller.events if event.HasField("receipt")]
            assert [(one.stage, one.frame) for one in told if one.command_id == "cut"] == [
                (pb.RECEIPT_STAGE_ACCEPTED, 13), (pb.RECEIPT_STAGE_APPLIED, 13),
            ]  # fmt: skip

    run(cut())


@LOOPS
def test_what_follows_a_cut_shows_nothing_of_what_was_before(pocket: OpenedModel, loop: Loop) -> None:
    made: list[list[bytes]] = []

    async def cut(before: int) -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await controller.push(range(before, before + 9))
            await settled(lambda: controller.session.logic.next_block == 2)
            await controller.command(restyled_cue(cuts=True, noise_scale=0.7))
            await controller.push(range(9, 25))
            controller.send(pb.Command(end_input=pb.EndInput()))
            await settled(lambda: controller.frames == 25)
            assert set(mixed(controller.bench, controller.name).values()) == {0.7}
            made.append([unit.data for chunk in controller.chunks for unit in chunk.units])

    run(cut(0))
    run(cut(100))
    assert made[0][8] != made[1][8]
    assert made[0][9:] == made[1][9:]


def test_a_decoder_that_is_lost_at_a_cut_or_behind_it_changes_no_picture(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[bytes]] = []
    decode, to_be_lost = LocalDecoder.decode, set[int]()

    async def decode_or_be_lost(decoder: LocalDecoder, key: str, block: Block, traceparent: str | None) -> Chunk:
        if block.number in to_be_lost:
            to_be_lost.remove(block.number)
            raise ReplicaLost("planted")
        return await decode(decoder, key, block, traceparent)

    async def cut() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(13))
            await settled(lambda: controller.frames == 13)
            await controller.command(CUT)
            await controller.push(range(13, 25))
            await settled(lambda: controller.frames == 25)
            made.append([unit.data for chunk in controller.chunks for unit in chunk.units])

    monkeypatch.setattr(LocalDecoder, "decode", decode_or_be_lost)
    run(cut())
    to_be_lost |= {3, 4}
    run(cut())
    assert not to_be_lost
    assert made[0] == made[1]


def test_a_block_that_was_encoded_as_an_opening_goes_on_where_the_cut_is_taken_away(pocket: OpenedModel) -> None:
    made: list[list[bytes]] = []

    async def restyle(*commands: pb.Command) -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(9))
            await settled(lambda: controller.frames == 9)
            session_input = controller.session.input
            assert session_input is not None
            controller.session.held += 1
            for number in range(9, 13):
                controller.send(png(number))
            await settled(lambda: session_input.ready is not None)
            for command in commands:
                await controller.command(command)
                await settled(lambda: controller.session.ready_input is not None)
            controller.session.held -= 1
            await controller.push(range(13, 17))
            await settled(lambda: controller.frames == 17)
            assert opening(controller.bench, controller.name) == 0
            made.append([unit.data for chunk in controller.chunks for unit in chunk.units])

    away = pb.Command(id="away", remove_prompt=pb.RemovePrompt(frame=9))
    run(restyle())
    run(restyle(CUT, away))
    assert made[0] == made[1]


@LOOPS
def test_a_standby_goes_on_after_a_cut_as_the_session_would_have(pocket: OpenedModel, loop: Loop) -> None:
    resumed: list[ResumeState] = []
    latents: list[list[torch.Tensor]] = []

    async def restyle() -> None:
        copy = StandbyCopy()
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))

            following = asyncio.create_task(follow(bench, name, copy))
            async with controlled(bench, name) as controller:
                await controller.push(range(13))
                await settled(lambda: controller.session.logic.next_block == 3)
                await controller.command(CUT)
                await controller.push(range(13, 21))
                out = 21 if loop == "plain" else 17
                await settled(lambda: copy.record is not None and copy.record.delivered_frames >= out)
                await settled(lambda: copy.resume_state("").pictures[-1].ids[0] == 1017)
                resumed.append(copy.resume_state("lost"))
                await controller.push(range(21, 29))
                controller.send(pb.Command(end_input=pb.EndInput()))
                await settled(lambda: controller.frames == 29)
                latents.append(list(stream_of(bench, name).recent))
            following.cancel()

    async def go_on() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            await bench.open(video_spec(pocket), resume=resumed[0])
            async with controlled(bench, "one") as controller:
                assert opening(bench, "one") == 3
                await controller.push(range(21, 29))
                controller.send(pb.Command(end_input=pb.EndInput()))
                await settled(lambda: controller.frames == 29)
                assert controller.pictures == list(range(1000, 1029))
                latents.append(list(stream_of(bench, "one").recent))

    run(restyle())
    assert [block.opens for block in resumed[0].pictures] == [False, False, True, False]
    run(go_on())
    ours, theirs = latents
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=RESUMED, rtol=0)


def sizes(controller: Controller) -> list[tuple[int, int, int]]:
    """At which frames the video opened anew with pictures of another size, and of which."""
    resized = [one for one in controller.applied if one.HasField("picture_size")]
    assert all(one.cue.restyling.cuts for one in resized)
    return [(one.frame, one.picture_size.height, one.picture_size.width) for one in resized]


@LOOPS
def test_the_video_opens_anew_with_the_first_block_of_pictures_of_another_size_and_none_is_lost(
    pocket: OpenedModel, loop: Loop
) -> None:
    async def turn() -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await controller.push(range(35))
            await controller.push(range(35, 49), 160, 96)
            controller.send(pb.Command(end_input=pb.EndInput()))
            await settled(lambda: controller.frames == 49)
            assert controller.pictures == list(range(1000, 1049))
            assert [len(chunk.units) for chunk in controller.chunks] == [5, *[4] * 11]
            assert sizes(controller) == [(37, 160, 96)]
            assert [one.cue.prompts[0].text for one in controller.applied] == [NOON, NOON]
            assert opening(controller.bench, controller.name) == 9

    run(turn())


def test_the_video_opens_anew_where_only_the_aspect_ratio_of_pixels_is_another(pocket: OpenedModel) -> None:
    async def widen() -> None:
        async with restyling(pocket) as controller:
            for number, unit in enumerate([*h264(34), *h264(12, pixel_aspect=Fraction(64, 45))]):
                sent = pb.Picture(id=number, time_us=number * 62_500, format=pb.PICTURE_FORMAT_H264, data=unit)
                controller.send(pb.Command(picture=sent))
                await at_rest(controller.bench, controller.name)
            await settled(lambda: controller.frames == 45)
            assert sizes(controller) == [(37, 96, 228)]

    run(widen())


def test_what_follows_another_size_shows_nothing_of_what_was_before(pocket: OpenedModel) -> None:
    made: list[list[bytes]] = []

    async def turn(before: int) -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(before, before + 33))
            await controller.push(range(before + 33, before + 41), 160, 96)
            await settled(lambda: controller.frames == 41)
            made.append([unit.data for chunk in controller.chunks for unit in chunk.units])

    # The square is where it was every 34 pictures in one size, and every 18 in the other.
    run(turn(0))
    run(turn(18))
    assert made[0][32] != made[1][32]
    assert made[0][33:] == made[1][33:]


def test_sizes_that_change_all_the_time_open_the_video_anew_every_eighth_block_at_most(
    pocket: OpenedModel,
) -> None:
    async def flicker() -> None:
        async with restyling(pocket) as controller:
            for number in range(37):
                await controller.push([number], *((96, 160) if number % 2 else (160, 96)))
            await settled(lambda: controller.frames == 37)
            assert sizes(controller) == []
            for first in range(37, 133, 4):
                await controller.push(range(first, first + 4), *((96, 160) if first % 8 == 1 else (160, 96)))
            await settled(lambda: controller.frames == 133)
            frames = [frame for frame, *_ in sizes(controller)]
            assert len(frames) >= 2
            assert min(after - before for before, after in pairwise(frames)) >= 32
            assert controller.pictures == list(range(1000, 1133))

    run(flicker())


def test_another_size_behind_a_lost_replica_opens_the_video_anew(pocket: OpenedModel) -> None:
    resumed: list[ResumeState] = []

    async def lose() -> None:
        copy = StandbyCopy()
        async with at_work(pocket) as bench:
            name = await begun(bench, video_spec(pocket))
            following = asyncio.create_task(follow(bench, name, copy))
            async with controlled(bench, name) as controller:
                await controller.push(range(33))
                await settled(lambda: copy.record is not None and copy.record.delivered_frames == 33)
            following.cancel()
            resumed.append(copy.resume_state("lost"))

    async def go_on() -> None:
        async with at_work(pocket) as bench:
            await bench.open(video_spec(pocket), resume=resumed[0])
            async with controlled(bench, "one") as controller:
                await controller.push(range(33, 41), 160, 96)
                await settled(lambda: controller.frames == 41)
                assert sizes(controller) == [(33, 160, 96)]
                forked = await bench.fork("one", None)
            async with controlled(bench, forked.id) as other:
                await other.push(range(41, 69))
                await settled(lambda: other.frames >= 69)
                assert sizes(other) == [(65, 96, 160)]

    run(lose())
    run(go_on())


@LOOPS
def test_a_session_that_moves_to_a_like_machine_goes_on_bit_for_bit(pocket: OpenedModel, loop: Loop) -> None:
    made: list[list[bytes]] = []
    handed: list[HandedOver] = []

    async def restyle(moves: bool) -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))
            following = asyncio.create_task(follow(bench, name, StandbyCopy()))
            async with controlled(bench, name) as controller:
                await controller.push(range(21))
                await controller.command(restyled_cue(noise_scale=0.7))
                await controller.push(range(21, 29))
                await settled(lambda: controller.session.logic.next_block == 7)
                if moves:
                    controller.send(png(29), png(30))
                    handed.append(await bench.denoiser.hand_over(name, 1, 1, bench.denoiser.machine()))
                else:
                    await finished(controller)
            following.cancel()

    async def go_on() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            state = await bench.open(video_spec(pocket), resume=handed[0].resume)
            assert state.resumed.kind == pb.RESUME_KIND_EXACT
            async with controlled(bench, "one") as controller:
                await finished(controller, dropped=2)

    async def finished(controller: Controller, dropped: int = 0) -> None:
        await controller.push(range(29, 45))
        controller.send(pb.Command(end_input=pb.EndInput()))
        await settled(lambda: controller.frames == 45)
        assert controller.input.dropped == dropped
        assert controller.pictures == list(range(1000, 1045))
        made.append([unit.data for chunk in controller.chunks for unit in chunk.units])

    run(restyle(moves=False))
    run(restyle(moves=True))
    assert handed[0].resume.exact
    run(go_on())
    assert made[0] == made[1]


def test_pictures_of_another_size_open_the_video_anew_though_their_cue_is_taken_away(pocket: OpenedModel) -> None:
    async def insist() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(33))
            await settled(lambda: controller.frames == 33)
            controller.session.held += 1
            await controller.push(range(33, 37), 160, 96)
            await settled(lambda: controller.session.ready_input is not None)
            await controller.command(pb.Command(id="away", remove_prompt=pb.RemovePrompt(frame=33)))
            controller.session.held -= 1
            await settled(lambda: controller.frames == 37)
            assert sizes(controller) == [(33, 160, 96)]

    run(insist())


RESUMED = 0.005
"""Of latents of 2, whose encoder went on from pictures that are kept as JPEG: 9e-4 is seen."""


def stream_of(bench: Bench, name: str) -> VideoStream:
    stream = bench.session(name).stream
    assert isinstance(stream, VideoStream)
    return stream


def test_a_session_from_prompts_alone_refuses_to_restyle(pocket: OpenedModel) -> None:
    async def refuse() -> None:
        async with at_work(pocket) as bench:
            text = replace(video_spec(pocket), stream=replace(pocket.model.config.stream, height=32, width=48))
            with pytest.raises(InvalidRequest, match="take pictures"):
                await bench.open(text, [Cue(0, Blend.of(NOON), restyling=Restyling(0.5))])
            await bench.open(text, cues(NOON))
            with pytest.raises(InvalidRequest, match="take pictures"):
                await bench.denoiser.command("one", restyled_cue(noise_scale=0.5))
            with pytest.raises(InvalidRequest, match="takes no pictures"):
                await bench.denoiser.command("one", CUT)

    run(refuse())


def test_where_time_is_short_blocks_go_through_stream_batch_and_back_and_none_is_lost(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_loops, "LOOK_S", 0.0)
    monkeypatch.setattr(loop_choice, "CHANGED_AFTER_S", 0.0)
    capacity = Capacity(pocket.model.config.transformer, pocket.model.config.stream)
    busy = {"plain": 0.5, "batch": 0.1}

    def taken(loads: Iterable[Load], now: float) -> float:
        return sum(busy[load.stream.loop] for load in loads if isinstance(load.stream, VideoStreamConfig))

    monkeypatch.setattr(capacity, "busy", taken)

    async def restyle() -> None:
        async with restyling(pocket, capacity=capacity) as controller:

            def loops() -> list[int]:
                return [event.state.loop for event in controller.events if event.HasField("state")]

            await controller.push(range(9))
            busy["plain"] = 0.95
            await controller.push(range(9, 21))
            await settled(lambda: loops()[-1] == pb.VIDEO_LOOP_BATCH)
            assert controller.frames < 21
            busy["plain"] = 0.5
            await settled(lambda: loops()[-1] == pb.VIDEO_LOOP_PLAIN)
            await controller.push(range(21, 29))
            await settled(lambda: controller.frames >= 29)
            assert controller.pictures == list(range(1000, 1029))

    run(restyle())


def test_both_kinds_of_sessions_run_side_by_side(pocket: OpenedModel) -> None:
    async def both() -> None:
        async with at_work(pocket) as bench:
            text = replace(
                video_spec(pocket, "text"), stream=replace(pocket.model.config.stream, height=32, width=48)
            )
            await begun(bench, text)
            name = await begun(bench, video_spec(pocket))
            async with controlled(bench, name) as controller, controlled(bench, "text") as other:
                await controller.push(range(13))
                await settled(lambda: controller.frames >= 13 and other.frames >= 9)
                assert [len(chunk.units) for chunk in other.chunks][:1] == [9]

    run(both())

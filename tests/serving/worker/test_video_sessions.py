"""Sessions that restyle the pictures that their controller sends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch

from engines.config.video_stream import Loop, VideoStreamConfig
from engines.streaming.state import Block
from engines.video.builder import build_input_encoder
from engines.video.generator import VideoGenerator
from engines.video.input import InputEncoder
from engines.video.stream import VideoStream
from serving.errors import ControllerReplaced, InvalidRequest, SessionFailed, WrongState
from serving.gateway.session_snapshot import pack, restored, unpack
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import read_chunk
from serving.replication.messages import HandedOver, ResumeState, SessionSpec
from serving.session.types import Receipt
from serving.timeline.cue import Blend, Cue, Restyling
from serving.weights.loader import OpenedModel
from serving.worker.blocks import video_loops
from serving.worker.capacity import loop_choice
from serving.worker.capacity.capacity import Capacity, Load
from serving.worker.state.active_session import ActiveSession
from tests.serving.worker.bench import NIGHT, NOON, at_work, cues, run, settled
from tests.serving.worker.pictures.clips import encoded, h264, picture, png
from tests.serving.worker.video_bench import (
    ANNA,
    CUT,
    LOOPS,
    Controller,
    begun,
    controlled,
    restyled_cue,
    restyling,
    standing_by,
    video_spec,
)
from tests.support.generators import generator_for


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
                    await controller.at_rest()
                controller.end_input()
                await settled(lambda: controller.frames >= 17)
                assert controller.pictures == list(range(17))
                sent.extend(controller.encoded)

    run(restyle())
    assert sent == remade(pocket, spec, [loop] * 4)


def remade(pocket: OpenedModel, spec: SessionSpec, loops: Sequence[Loop]) -> list[bytes]:
    """The frames of a session's first pictures, of blocks that are made in these loops, by the engine alone."""
    generator = generator_for(pocket.model)
    video, encoder = VideoGenerator(generator), build_input_encoder(pocket.model)
    assert isinstance(spec.stream, VideoStreamConfig)
    opened = video.open(replace(spec.stream, loop=loops[0]))
    video.set_prompt(opened, pocket.prompts.encode(NOON))
    pictures = torch.stack([torch.from_numpy(picture(number, 32, 48)) for number in range(1 + 4 * len(loops))])
    state, blocks, made = encoder.start(opened.config), list[Block](), []
    for group, loop in zip((pictures[:5], *pictures[5:].split(4)), loops, strict=True):
        if opened.loop != loop:
            blocks += video.flush(opened)
            video.use_loop(opened, loop)
        inputs, state = encoder.encode(opened.config, group, state)
        blocks += [block for block in video.generate([opened], inputs) if block is not None]
    for block in (*blocks, *video.flush(opened)):
        frames = video.decode(opened, block).numpy()
        made += [unit.data for unit in ChunkEncoder(32, 48).encode(block.number, 0, frames).units]
    return made


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
            assert controller.input.received == 203
            await settled(
                lambda: controller.input.dropped == 203 - len(set(controller.pictures)) - _left(controller.session)
            )
            assert sorted(controller.pictures) == controller.pictures

    run(flood())


def _left(session: ActiveSession) -> int:
    """Pictures that wait for the rest of their block."""
    session_input = session.input
    assert session_input is not None
    return session_input.waiting


@LOOPS
def test_the_end_of_the_pictures_fills_the_last_block(pocket: OpenedModel, loop: Loop) -> None:
    async def end() -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await controller.push(range(7))
            controller.end_input()
            await settled(lambda: controller.frames >= 9)
            assert controller.pictures == [*range(1000, 1007), 1006, 1006]
            await controller.push(range(100, 108))
            await settled(lambda: controller.frames >= 13)
            assert controller.pictures[9:13] == [1100, 1101, 1102, 1103]

    run(end())


def test_an_end_of_the_pictures_that_comes_while_the_session_is_paused_holds(pocket: OpenedModel) -> None:
    async def end() -> None:
        async with restyling(pocket, video_loop="batch") as controller:
            await controller.push(range(9))
            await settled(lambda: controller.frames >= 5)
            await controller.command(pb.Command(id="pause", pause=pb.Pause()))
            controller.end_input()
            await controller.command(pb.Command(id="resume", resume=pb.Resume()))
            await settled(lambda: controller.frames >= 9)
            assert controller.pictures == list(range(1000, 1009))

    run(end())


def test_what_was_on_its_way_as_a_replica_was_lost_comes_out_where_the_pictures_have_ended(
    pocket: OpenedModel,
) -> None:
    resumed: list[ResumeState] = []

    async def lose() -> None:
        async with at_work(pocket, video_loop="batch") as bench:
            name = await begun(bench, video_spec(pocket))
            async with standing_by(bench, name) as copy, controlled(bench, name) as controller:
                await controller.push(range(13))
                await settled(lambda: copy.record is not None and copy.record.delivered_frames >= 9)
                await settled(lambda: len(controller.session.on_way) == 1)
            resumed.append(copy.resume_state("lost"))

    async def go_on() -> None:
        async with at_work(pocket, video_loop="batch") as bench:
            await bench.open(video_spec(pocket), resume=resumed[0])
            async with controlled(bench, "one") as controller:
                controller.end_input()
                await settled(lambda: controller.frames >= 13)
                assert controller.pictures == list(range(1000, 1013))

    run(lose())
    run(go_on())


def test_who_sends_nothing_for_a_second_is_waited_for(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with restyling(pocket) as controller:

            def reasons() -> list[int]:
                return [event.state.waiting for event in controller.events if event.HasField("state")]

            await settled(lambda: pb.WAIT_REASON_INPUT in reasons())
            await controller.push(range(5))
            await settled(lambda: reasons()[-1] == pb.WAIT_REASON_UNSPECIFIED)

    run(wait())


def test_who_sends_nothing_that_can_be_shown_is_told_why(pocket: OpenedModel) -> None:
    async def wait() -> None:
        async with restyling(pocket) as controller:

            def told() -> list[str]:
                return [event.state.broken_picture for event in controller.events if event.HasField("state")]

            await controller.push([0], 340, 20)
            await settled(lambda: told()[-1] == "a picture is shown as 20x340; one side may be at most 16 times "
                          "the other: crop it")  # fmt: skip
            rubbish = pb.Picture(id=1, format=pb.PICTURE_FORMAT_JPEG, data=b"no picture")
            controller.send(pb.Command(picture=rubbish))
            await settled(lambda: told()[-1].startswith("a picture cannot be decoded as JPEG: send whole ones"))
            await controller.push(range(5))
            await settled(lambda: told()[-1] == "")

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


def test_pictures_that_come_while_a_resume_is_being_answered_are_shown(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resume() -> None:
        async with restyling(pocket) as controller:
            await controller.command(pb.Command(id="pause", pause=pb.Pause()))
            answer = controller.session.answer

            async def slowly(receipts: Iterable[Receipt], timeout_s: float) -> bool:
                controller.send(*(png(number) for number in range(5)))
                await asyncio.sleep(0.2)
                return await answer(receipts, timeout_s)

            monkeypatch.setattr(controller.session, "answer", slowly)
            await controller.command(pb.Command(id="resume", resume=pb.Resume()))
            await settled(lambda: controller.frames >= 5)
            assert controller.pictures == list(range(1000, 1005))

    run(resume())


def test_pictures_of_a_session_that_has_ended_are_left_where_they_are(pocket: OpenedModel) -> None:
    async def end() -> None:
        async with restyling(pocket) as controller:
            session_input = controller.session_input
            controller.send(*(png(number) for number in range(12)))
            await controller.bench.close(controller.name)
            await settled(lambda: session_input.working is None)
            assert session_input.waiting >= 11

    run(end())


def test_pictures_that_cannot_be_encoded_end_their_session_and_the_log_names_it(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(InputEncoder, "encode", fail)

    async def encode() -> None:
        async with restyling(pocket) as controller:
            session = controller.session
            controller.send(*(png(number) for number in range(5)))
            await settled(lambda: session.closed)
            assert isinstance(session.failure, SessionFailed)

    run(encode())
    told = [vars(record) for record in caplog.records if record.levelname == "ERROR"]
    assert [(one["session"], one["doing"]) for one in told] == [("one", "encoding its pictures")]


def test_pictures_of_the_take_before_a_reset_that_cannot_be_encoded_end_nothing(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reset = threading.Event()

    def fail(*_: object) -> None:
        is_reset.wait(20)
        raise RuntimeError("planted")

    monkeypatch.setattr(InputEncoder, "encode", fail)

    async def reset() -> None:
        async with restyling(pocket) as controller:
            before = controller.session_input
            controller.send(*(png(number) for number in range(5)))
            await settled(lambda: len(before._group) == 5)
            await controller.command(pb.Command(id="reset", reset=pb.Reset()))
            is_reset.set()
            await settled(lambda: before.working is None)
            assert not controller.session.ending

    run(reset())


def test_a_stream_of_a_camera_is_sampled(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            for number, unit in enumerate(h264(30)):
                sent = pb.Picture(id=number, time_us=number * 33_333, format=pb.PICTURE_FORMAT_H264, data=unit)
                controller.send(pb.Command(picture=sent))
                await controller.at_rest()
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


@LOOPS
def test_a_standby_goes_on_with_the_next_block(pocket: OpenedModel, loop: Loop) -> None:
    resumed: list[ResumeState] = []
    frames: list[int] = []

    async def lose() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))
            async with standing_by(bench, name) as copy, controlled(bench, name) as controller:
                await controller.push(range(17))
                await settled(lambda: controller.frames >= 13)
                await bench.denoiser.command(name, restyled_cue(noise_scale=0.7))
                await controller.push(range(17, 21))
                out = 21 if loop == "plain" else 17
                await settled(lambda: copy.record is not None and copy.record.delivered_frames >= out)
            resumed.append(copy.resume_state("lost"))

    async def go_on() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            await bench.open(video_spec(pocket), resume=resumed[0])
            async with controlled(bench, "one") as controller:
                await controller.push(range(21, 29))
                controller.end_input()
                await settled(lambda: controller.frames >= 29)
                assert controller.pictures == list(range(1000, 1029))
                assert set(controller.noise_scales.values()) == {0.85, 0.7}
                assert controller.noise_scales[6] == 0.7
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


def test_another_share_of_noise_holds_from_the_block_at_which_its_cue_applies(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(9))
            await settled(lambda: controller.frames >= 9)
            told = controller.session.describe().restyling
            assert (told.noise_scale, told.follows_motion, controller.input.noise_scale) == (0.85, False, 0.85)
            receipt = await controller.command(restyled_cue(noise_scale=0.6))
            await controller.push(range(9, 21))
            await settled(lambda: controller.frames >= 21)
            assert receipt.frame == 9
            states = [event.state.restyling.noise_scale for event in controller.events if event.HasField("state")]
            assert (
                states[-1],
                controller.session.describe().restyling.noise_scale,
                controller.input.noise_scale,
            ) == (0.6,) * 3
            assert controller.noise_scales == {0: 0.85, 1: 0.85, 2: 0.6, 3: 0.6, 4: 0.6}

    run(restyle())


def test_pictures_are_restyled_otherwise_without_a_prompt_being_said_again(pocket: OpenedModel) -> None:
    async def restyle() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(9))
            await settled(lambda: controller.frames >= 9)
            less = pb.Restyling(noise_scale=0.6, follows_motion=False)
            receipt = await controller.command(pb.Command(id="less", restyle=less))
            await controller.push(range(9, 13))
            await settled(lambda: controller.frames >= 13)
            assert (receipt.command, receipt.frame) == (pb.COMMAND_KIND_RESTYLE, 9)
            assert (controller.noise_scales[2], controller.session.logic.prompt) == (0.6, NOON)
            assert controller.session.describe().restyling == less

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


@LOOPS
def test_a_session_that_moves_to_a_like_machine_goes_on_bit_for_bit(pocket: OpenedModel, loop: Loop) -> None:
    made: list[list[bytes]] = []
    handed: list[HandedOver] = []

    async def restyle(moves: bool) -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))
            async with standing_by(bench, name), controlled(bench, name) as controller:
                await controller.push(range(21))
                await settled(lambda: controller.session.logic.next_block == 5)
                await controller.command(restyled_cue(noise_scale=0.7))
                await controller.push(range(21, 29))
                await settled(lambda: controller.session.logic.next_block == 7)
                if moves:
                    controller.send(png(29), png(30))
                    handed.append(await bench.denoiser.hand_over(name, 1, 1, bench.denoiser.machine()))
                else:
                    await finished(controller)

    async def go_on() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            state = await bench.open(video_spec(pocket), resume=handed[0].resume)
            assert state.resumed.kind == pb.RESUME_KIND_EXACT
            async with controlled(bench, "one") as controller:
                await finished(controller, dropped=2)

    async def finished(controller: Controller, dropped: int = 0) -> None:
        await controller.push(range(29, 45))
        controller.end_input()
        await settled(lambda: controller.frames == 45)
        assert controller.input.dropped == dropped
        assert controller.pictures == list(range(1000, 1045))
        made.append(controller.encoded)

    run(restyle(moves=False))
    run(restyle(moves=True))
    assert handed[0].resume.exact
    run(go_on())
    assert made[0] == made[1]


def test_a_session_from_prompts_alone_refuses_to_restyle(pocket: OpenedModel) -> None:
    async def refuse() -> None:
        async with at_work(pocket) as bench:
            text = replace(video_spec(pocket), stream=replace(pocket.model.config.stream, height=32, width=48))
            with pytest.raises(InvalidRequest, match="take pictures"):
                await bench.open(text, [Cue(0, Blend.of(NOON), restyling=Restyling(0.5))])
            await bench.open(text, cues(NOON))
            with pytest.raises(InvalidRequest, match="take pictures"):
                await bench.denoiser.command("one", restyled_cue(noise_scale=0.5))
            for asked in (CUT, pb.Command(id="less", restyle=pb.Restyling(noise_scale=0.5))):
                with pytest.raises(InvalidRequest, match="takes no pictures"):
                    await bench.denoiser.command("one", asked)

    run(refuse())


def test_where_time_is_short_blocks_go_through_stream_batch_and_back_and_chunks_say_which(
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

            await controller.push(range(9), 32, 48)
            busy["plain"] = 0.95
            await controller.push(range(9, 21), 32, 48)
            await settled(lambda: loops()[-1] == pb.VIDEO_LOOP_BATCH)
            assert controller.frames < 21
            busy["plain"] = 0.5
            await settled(lambda: loops()[-1] == pb.VIDEO_LOOP_PLAIN)
            await controller.push(range(21, 29), 32, 48)
            await settled(lambda: controller.frames >= 29)
            assert controller.pictures == list(range(1000, 1029))
            loops_of_blocks.extend(read_chunk(chunk).loop or "plain" for chunk in controller.chunks)
            sent.extend(controller.encoded)

    loops_of_blocks, sent = list[Loop](), list[bytes]()
    run(restyle())
    assert set(loops_of_blocks) == {"plain", "batch"}
    assert sent == remade(pocket, video_spec(pocket), loops_of_blocks)


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

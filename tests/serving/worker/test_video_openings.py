"""Videos that open anew in the middle: at cuts, and with pictures of another size."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from engines.config.video_stream import Loop
from engines.streaming.state import Block
from serving.errors import ReplicaLost
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import LocalDecoder
from serving.replication.messages import ResumeState
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import NOON, at_work, run, settled
from tests.serving.worker.pictures.clips import h264, png
from tests.serving.worker.video_bench import (
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
            controller.end_input()
            await settled(lambda: controller.frames == 29)
            assert [len(chunk.units) for chunk in controller.chunks] == [5, 4, 4, 4, 4, 4, 4]
            assert controller.pictures == list(range(1000, 1029))
            assert controller.stream.opening == 3
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
            controller.end_input()
            await settled(lambda: controller.frames == 25)
            assert set(controller.noise_scales.values()) == {0.7}
            made.append(controller.encoded)

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
            made.append(controller.encoded)

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
            session_input = controller.session_input
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
            assert controller.stream.opening == 0
            made.append(controller.encoded)

    away = pb.Command(id="away", remove_prompt=pb.RemovePrompt(frame=9))
    run(restyle())
    run(restyle(CUT, away))
    assert made[0] == made[1]


RESUMED = 0.02
"""Of latents of 2, whose encoder went on from pictures that are kept as JPEG: 0.01 is seen."""


@LOOPS
def test_a_standby_goes_on_after_a_cut_as_the_session_would_have(pocket: OpenedModel, loop: Loop) -> None:
    resumed: list[ResumeState] = []
    latents: list[list[torch.Tensor]] = []

    async def restyle() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            name = await begun(bench, video_spec(pocket))
            async with standing_by(bench, name) as copy, controlled(bench, name) as controller:
                await controller.push(range(13))
                await settled(lambda: controller.session.logic.next_block == 3)
                await controller.command(CUT)
                await controller.push(range(13, 21))
                out = 21 if loop == "plain" else 17
                await settled(lambda: copy.record is not None and copy.record.delivered_frames >= out)
                await settled(lambda: copy.resume_state("").pictures[-1].ids[0] == 1017)
                resumed.append(copy.resume_state("lost"))
                await controller.push(range(21, 29))
                controller.end_input()
                await settled(lambda: controller.frames == 29)
                latents.append(list(controller.stream.recent))

    async def go_on() -> None:
        async with at_work(pocket, video_loop=loop) as bench:
            await bench.open(video_spec(pocket), resume=resumed[0])
            async with controlled(bench, "one") as controller:
                assert controller.stream.opening == 3
                await controller.push(range(21, 29))
                controller.end_input()
                await settled(lambda: controller.frames == 29)
                assert controller.pictures == list(range(1000, 1029))
                latents.append(list(controller.stream.recent))

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
            controller.end_input()
            await settled(lambda: controller.frames == 49)
            assert controller.pictures == list(range(1000, 1049))
            assert [len(chunk.units) for chunk in controller.chunks] == [5, *[4] * 11]
            assert sizes(controller) == [(37, 160, 96)]
            assert [one.cue.prompts[0].text for one in controller.applied] == [NOON, NOON]
            assert controller.stream.opening == 9

    run(turn())


def test_the_video_opens_anew_where_only_the_aspect_ratio_of_pixels_is_another(pocket: OpenedModel) -> None:
    async def widen() -> None:
        async with restyling(pocket) as controller:
            for number, unit in enumerate([*h264(34), *h264(12, pixel_aspect=Fraction(64, 45))]):
                sent = pb.Picture(id=number, time_us=number * 62_500, format=pb.PICTURE_FORMAT_H264, data=unit)
                controller.send(pb.Command(picture=sent))
                await controller.at_rest()
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
            made.append(controller.encoded)

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
        async with at_work(pocket) as bench:
            name = await begun(bench, video_spec(pocket))
            async with standing_by(bench, name) as copy, controlled(bench, name) as controller:
                await controller.push(range(33))
                await settled(lambda: copy.record is not None and copy.record.delivered_frames == 33)
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

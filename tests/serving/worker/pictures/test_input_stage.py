"""The state of an encoder that has lost its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from av.video.frame import VideoFrame

from engines.config.networks import VAEConfig
from engines.config.video_stream import VideoStreamConfig
from engines.vae.wan_vae import WanVAE
from engines.video.input import InputEncoder
from serving.media.clips.shown_frame import ShownFrame
from serving.media.jpeg import write_jpeg
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import BlockPictures
from serving.worker.pictures.input_stage import InputStage
from serving.worker.pictures.picture_decoder import DecodedPicture, PictureFormat, SentPicture
from serving.worker.pictures.session_input import SessionInput
from tests.serving.worker.pictures.clips import picture


def block(first: int, *, opens: bool = False) -> BlockPictures:
    numbers = range(first, first + 4)
    return BlockPictures(tuple(numbers), tuple(write_jpeg(picture(number, 16, 32)) for number in numbers), opens)


@pytest.mark.parametrize(
    ("kept", "pictures"),
    [
        ([], 1),
        ([block(5)], 1),
        ([block(5), block(9)], 5),
        ([block(5), block(9, opens=True)], 5),
        ([block(5, opens=True), block(9)], 9),
        ([block(1), block(5, opens=True), block(9, opens=True), block(13)], 9),
    ],
    ids=["none", "a block", "two", "an opening", "an opening and another", "two openings"],
)
def test_it_goes_on_from_the_pictures_since_the_last_opening(kept: list[BlockPictures], pictures: int) -> None:
    encoder = InputEncoder(WanVAE(VAEConfig(dim=4)), torch.device("cpu"), torch.float32)
    stage = InputStage(encoder, ThreadPoolExecutor(1))
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 4, kept)
    state = stage._state(waiting, picture(17, 16, 32), opens=False)
    assert (state.blocks, state.cache.frames_seen) == (4, pictures)
    assert stage._state(waiting, picture(17, 16, 32), opens=True).cache.frames_seen == 0


@pytest.mark.parametrize(("kind", "decoded"), [("jpeg", [0, 7, None]), ("h264", [0, 1, 7, None])])
def test_a_picture_by_itself_that_no_frame_would_show_is_not_decoded(
    kind: PictureFormat, decoded: list[int | None]
) -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 0)
    for number in (0, 1, 7):
        waiting.put(SentPicture(number, 10_000 * number, kind, b"picture", 0.0))
    waiting.end()
    taken = list[int | None]()
    while sent := waiting.take_sent():
        (unit,) = sent
        taken.append(None if unit is None else unit.id)
        shown = [] if unit is None else [DecodedPicture(unit, ShownFrame(VideoFrame(32, 16)))]
        waiting.decoded(unit, shown)
    assert taken == decoded
    assert waiting.progress() == pb.InputProgress(received=3)


def sent_and_decoded(waiting: SessionInput, *times_us: int) -> None:
    """Pictures by a client that gives all of them the same id."""
    for time_us in times_us:
        unit = SentPicture(0, time_us, "jpeg", b"picture", 0.0)
        waiting.put(unit)
        waiting.take_sent()
        waiting.decoded(unit, [DecodedPicture(unit, ShownFrame(VideoFrame(32, 16)))])


def begin_block(waiting: SessionInput) -> None:
    """The next block begins with the pictures that are here."""
    encoder = InputEncoder(WanVAE(VAEConfig(dim=4)), torch.device("cpu"), torch.float32)
    group = waiting.take_pictures()
    waiting.encoded(InputStage(encoder, ThreadPoolExecutor(1))._encoded(waiting, group, opens=False))
    waiting.take()


def test_a_picture_that_waits_for_several_frames_is_lost_once_and_not_where_a_block_has_begun_with_it() -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 1)
    sent_and_decoded(waiting, 0, 62_500, 125_000, 312_500)
    begin_block(waiting)
    assert (len(waiting._shown), waiting.waiting) == (2, 0)
    sent_and_decoded(waiting, 437_500)
    waiting.put(SentPicture(0, 500_000, "jpeg", b"picture", 0.0))
    assert waiting.waiting == 2
    waiting.clear()
    assert (waiting.waiting, waiting.dropped) == (0, 2)


def test_pictures_that_are_being_decoded_or_encoded_wait_too_and_are_not_cleared_away() -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 1)
    sent_and_decoded(waiting, *range(0, 312_500, 62_500))
    assert len(waiting.take_pictures()) == 4
    waiting.put(SentPicture(0, 312_500, "jpeg", b"picture", 0.0))
    waiting.take_sent()
    assert waiting.waiting == 6
    waiting.clear()
    assert (waiting.waiting, waiting.dropped) == (5, 1)

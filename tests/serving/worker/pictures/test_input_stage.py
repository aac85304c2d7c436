"""The state of an encoder that has lost its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engines.config.networks import VAEConfig
from engines.config.video_stream import VideoStreamConfig
from engines.vae.wan_vae import WanVAE
from engines.video.input import InputEncoder
from serving.media.clips.shown_frame import PictureSize
from serving.media.jpeg import write_jpeg
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import BlockPictures
from serving.worker.pictures.input_stage import InputStage
from serving.worker.pictures.picture_decoder import PictureFormat, SentPicture
from serving.worker.pictures.session_input import InputPicture, SessionInput
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


@pytest.mark.parametrize(("kind", "decoded"), [("jpeg", [0, 7]), ("h264", [0, 1, 7])])
def test_a_picture_by_itself_that_no_frame_would_show_is_not_decoded(
    kind: PictureFormat, decoded: list[int]
) -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 0)
    for number in (0, 1, 7):
        waiting.put(SentPicture(number, 10_000 * number, kind, b"picture", 0.0))
    taken = list[int]()
    while (sent := waiting.take_sent()) is not None:
        taken.append(sent.id)
        waiting.decoded(sent, [shown_as(sent)])
    assert taken == decoded
    assert waiting.progress() == pb.InputProgress(received=3)


def shown_as(sent: SentPicture) -> InputPicture:
    return InputPicture(sent, PictureSize(16, 32), picture(sent.id, 16, 32))


def sent_and_decoded(waiting: SessionInput, *times_us: int) -> None:
    """Pictures by a client that gives all of them the same id."""
    for time_us in times_us:
        waiting.put(SentPicture(0, time_us, "jpeg", b"picture", 0.0))
        sent = waiting.take_sent()
        assert sent is not None
        waiting.decoded(sent, [shown_as(sent)])


def begin_block(waiting: SessionInput, now: float = 0.0) -> None:
    """The next block begins with the pictures that are here."""
    group = waiting.take_pictures()
    encode(waiting, group)
    waiting.take(now)


def encode(waiting: SessionInput, group: Sequence[InputPicture]) -> None:
    encoder = InputEncoder(WanVAE(VAEConfig(dim=4)), torch.device("cpu"), torch.float32)
    waiting.encoded(group, InputStage(encoder, ThreadPoolExecutor(1))._encoded(waiting, group, opens=False))


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


def test_what_is_being_decoded_or_encoded_waits_too_and_is_not_shown_once_it_is_cleared_away() -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 1)
    sent_and_decoded(waiting, *range(0, 312_500, 62_500))
    group = waiting.take_pictures()
    waiting.put(SentPicture(0, 312_500, "jpeg", b"picture", 0.0))
    sent = waiting.take_sent()
    assert sent is not None
    assert (len(group), waiting.waiting) == (4, 6)
    waiting.clear()
    waiting.decoded(sent, [shown_as(sent)])
    encode(waiting, group)
    assert (waiting.waiting, waiting.dropped, waiting.ready) == (0, 6, None)


def test_the_end_of_the_pictures_holds_until_another_comes() -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 1)
    for _ in range(1000):
        waiting.end()
    assert waiting.is_over
    waiting.clear()
    assert waiting.is_over
    sent_and_decoded(waiting, 0)
    assert not waiting.take_pictures()
    waiting.end()
    assert len(waiting.take_pictures()) == 4


def test_a_block_has_no_pictures_of_two_senders() -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 1)
    waiting.set_sender("anna")
    sent_and_decoded(waiting, 0, 62_500)
    waiting.set_sender("anna")
    assert waiting.waiting == 2
    waiting.set_sender("bert")
    assert (waiting.waiting, waiting.dropped) == (0, 2)
    waiting.put(SentPicture(0, 0, "h264", b"picture", 0.0))
    sent = waiting.take_sent()
    assert sent is not None
    assert sent.is_behind_loss


def test_blocks_begin_no_faster_than_time_passes_but_for_two() -> None:
    waiting = SessionInput(VideoStreamConfig(seed=1, height=16, width=32), "fill", 1)
    begun = list[float]()
    for number in range(12):
        sent_and_decoded(waiting, *(250_000 * number + 62_500 * picture for picture in range(4)))
        begun.append(max(100.0, waiting.limit.at))
        begin_block(waiting, begun[-1])
    assert begun[:3] == [100.0] * 3
    assert begun[-1] == pytest.approx(100.0 + 9 * 0.25, rel=0.001)

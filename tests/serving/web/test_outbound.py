from __future__ import annotations

import io
import json
import weakref
from typing import Any

import av
import numpy as np
import pytest

from serving.media.chunk import Chunk
from serving.media.encoder import ChunkEncoder
from serving.media.fmp4 import Fragments
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.web.outbound import FRAMES, HEAD, INIT, EventWriter
from serving.web.segments import SegmentCache
from tests.serving.fake_sessions import HEIGHT, WIDTH, chunk_message, paint, painted_frame


def written(writer: EventWriter, event: pb.Event) -> list[tuple[str, dict[str, Any]]]:
    messages = [json.loads(message) for message in writer.write(event)]
    return [(message["type"], message["data"]) for message in messages]


def opened() -> EventWriter:
    writer = EventWriter(SegmentCache())
    writer.write(pb.Event(state=pb.Session(options=pb.SessionOptions(height=HEIGHT, width=WIDTH))))
    return writer


def cue(text: str, frame: int) -> pb.Cue:
    return pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=text, weight=1)])


def chunk_event(take: int, block: int, first: int, frames: int) -> pb.Event:
    pictures = np.stack([paint("noon", frame) for frame in range(first, first + frames)])
    chunk = ChunkEncoder(HEIGHT, WIDTH).encode(block, first, pictures)
    return pb.Event(take=take, chunk=chunk_message(chunk))


def test_chunks_become_a_video_of_all_their_frames() -> None:
    writer = opened()
    media, *binaries = [
        *writer.write(chunk_event(0, 0, 0, 9)),
        *writer.write(chunk_event(0, 1, 9, 12)),
    ]
    assert json.loads(media)["data"]["mime"].startswith('video/mp4; codecs="avc1.')
    heads = [HEAD.unpack_from(binary) for binary in binaries if isinstance(binary, bytes)]
    assert heads == [
        (INIT, 0, 0, 0, 0),
        (FRAMES, 0, 0, 9, 0),
        (FRAMES, 0, 9, 12, 0),
    ]
    film = b"".join(binary[HEAD.size :] for binary in binaries if isinstance(binary, bytes))
    with av.open(io.BytesIO(film), "r") as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = [painted_frame(np.asarray(picture, np.uint8)) for picture in pictures]
    assert frames == list(range(21))


def test_every_take_says_anew_how_to_decode_it() -> None:
    writer = opened()
    writer.write(chunk_event(0, 0, 0, 9))
    again = [message for message in writer.write(chunk_event(1, 0, 0, 9)) if isinstance(message, bytes)]
    assert [HEAD.unpack_from(binary) for binary in again] == [(INIT, 1, 0, 0, 0), (FRAMES, 1, 0, 9, 0)]


def test_every_message_of_an_event_carries_its_seq() -> None:
    writer = opened()
    chunk = chunk_event(0, 0, 0, 9)
    chunk.seq = 1 << 40
    media, *binaries = writer.write(chunk)
    assert json.loads(media)["seq"] == 1 << 40
    assert {HEAD.unpack_from(binary)[-1] for binary in binaries if isinstance(binary, bytes)} == {1 << 40}
    applied = pb.Event(seq=7, applied=pb.AppliedCue(cue=cue("noon", 0), frame=0))
    assert [json.loads(message)["seq"] for message in writer.write(applied)] == [7, 7]


def test_what_is_of_one_stream_only_has_no_seq() -> None:
    (message,) = opened().write(pb.Event(gap=pb.Gap(first_frame=3, frames=12)))
    assert "seq" not in json.loads(message)


def test_a_state_says_what_the_published_protocol_says_and_more() -> None:
    session = pb.Session(
        id="s", state=pb.SESSION_STATE_PAUSED, current_start_frame=33, next_frame=45, prompt="noon",
        pending=[cue("night", 60)], applied=[pb.AppliedCue(cue=cue("noon", 0), frame=0)],
        options=pb.SessionOptions(seed=(1 << 64) - 1),
    )  # fmt: skip
    ((kind, data),) = written(EventWriter(SegmentCache()), pb.Event(state=session))
    assert (kind, data["current_frame"], data["current_prompt"], data["paused"]) == ("state", 33, "noon", True)
    assert data["scheduled_prompts"] == {"60": "night"}
    assert data["applied"][0]["frame"] == 0
    assert data["seed"] == "18446744073709551615"


def test_a_state_fits_a_client_of_1_mib_and_counts_the_cues_that_do_not_fit() -> None:
    parts = [pb.WeightedPrompt(text="🎈" * 10_000, weight=1)] * 16
    longest = pb.Cue(prompts=parts)
    long = [cue('"' * 9_800, 12 * number) for number in range(450)]
    session = pb.Session(
        pending=long, pending_count=450, applied_count=101, prompt="🎈" * 160_000,
        applied=[pb.AppliedCue(cue=longest), *(pb.AppliedCue(cue=one, frame=one.frame) for one in long[:100])],
    )  # fmt: skip
    message = EventWriter(SegmentCache()).state(session)
    assert len(message.encode()) < 1 << 20
    data = json.loads(message)["data"]
    assert (data["pending"][0]["timestamp"], data["pending_count"]) == (0, 450)
    assert (data["applied"][-1]["frame"], data["applied_count"]) == (12 * 99, 101)
    assert list(data["scheduled_prompts"]) == [str(one["timestamp"]) for one in data["pending"]]
    events = EventWriter(SegmentCache()).write(pb.Event(applied=pb.AppliedCue(cue=longest)))
    assert max(len(str(event).encode()) for event in events) < 1 << 20


def test_a_state_says_what_the_video_is_made_from_and_how_long_its_blocks_are() -> None:
    options = pb.SessionOptions(input=pb.INPUT_KIND_VIDEO, fit=pb.PICTURE_FIT_WHOLE, noise_scale=0.5)
    session = pb.Session(options=options, first_block_frames=5, block_frames=4, waiting=pb.WAIT_REASON_INPUT)
    session.broken_picture = "a picture is a ribbon"
    session.loop = pb.VIDEO_LOOP_BATCH
    session.restyling.MergeFrom(pb.Restyling(noise_scale=0.6, follows_motion=True))
    ((_, data),) = written(opened(), pb.Event(state=session))
    assert (data["input"], data["fit"], data["noise_scale"]) == ("video", "fit", 0.5)
    assert (data["first_block_frames"], data["block_frames"], data["waiting"]) == (5, 4, "input")
    assert data["broken_picture"] == "a picture is a ribbon"
    assert (data["loop"], data["restyling"]) == ("batch", {"noise_scale": 0.6, "follows_motion": True})
    ((_, text),) = written(opened(), pb.Event(state=pb.Session()))
    assert (text["input"], text["noise_scale"], text["loop"], text["restyling"]) == ("none", None, None, None)


def test_the_pictures_of_frames_are_told_before_the_frames() -> None:
    event = chunk_event(3, 1, 5, 4)
    event.chunk.loop = pb.VIDEO_LOOP_PLAIN
    for unit, picture in zip(event.chunk.units, (70, 70, 71, 73), strict=True):
        unit.picture = picture
    *_, pictures, frames = opened().write(event)
    data = json.loads(pictures)
    assert (data["type"], data["data"]) == (
        "pictures",
        {"take": 3, "first_frame": 5, "pictures": [70, 70, 71, 73], "loop": "plain"},
    )
    assert isinstance(frames, bytes)


def test_progress_counts_what_became_of_pictures_where_some_are_taken() -> None:
    counts = pb.InputProgress(received=9, dropped=2, broken=1, noise_scale=0.7)
    ((_, data),) = written(opened(), pb.Event(progress=pb.Progress(input=counts)))
    assert data["input"] == {"received": 9, "dropped": 2, "broken": 1, "noise_scale": 0.7}
    assert "input" not in written(opened(), pb.Event(progress=pb.Progress()))[0][1]


def test_a_start_brings_a_receipt_an_event_and_progress_from_zero() -> None:
    receipt = pb.Receipt(command_id="go", command=pb.COMMAND_KIND_START, stage=pb.RECEIPT_STAGE_ACCEPTED)
    messages = written(opened(), pb.Event(receipt=receipt))
    assert [kind for kind, _ in messages] == ["receipt", "event", "progress"]
    assert messages[0][1]["command_id"] == "go"
    assert messages[1][1]["event"] == "generation_started"
    assert messages[2][1]["current_start_frame"] == 0


def test_a_refusal_names_the_reason_twice_for_old_and_new_clients() -> None:
    error = pb.Error(code=9, message="it is paused", reason=pb.ERROR_REASON_WRONG_STATE)
    receipt = pb.Receipt(command=pb.COMMAND_KIND_START, stage=pb.RECEIPT_STAGE_REFUSED, error=error)
    (_, refused), (_, happened) = written(opened(), pb.Event(receipt=receipt))
    told = {"code": "FAILED_PRECONDITION", "reason": "WRONG_STATE", "message": "it is paused"}
    assert refused["error"] == told
    assert (happened["event"], happened["message"]) == ("error", "it is paused")


def test_a_video_that_opens_anew_says_of_what_size_its_pictures_are() -> None:
    resized = pb.AppliedCue(cue=cue("noon", 0), frame=37, picture_size=pb.PictureSize(height=160, width=96))
    applied = json.loads(EventWriter(SegmentCache()).write(pb.Event(applied=resized))[0])["data"]
    assert (applied["frame"], applied["picture_size"]) == (37, {"height": 160, "width": 96})


def test_an_applied_cue_names_the_prompt_before_it() -> None:
    writer = opened()
    writer.write(pb.Event(applied=pb.AppliedCue(cue=cue("noon", 0), frame=0)))
    (_, applied), (_, switched) = written(writer, pb.Event(applied=pb.AppliedCue(cue=cue("night", 30), frame=33)))
    assert (applied["timestamp"], applied["frame"]) == (30, 33)
    assert (switched["new_prompt"], switched["previous_prompt"]) == ("night", "noon")


def test_who_is_replaced_is_told_and_a_heartbeat_is_passed_on() -> None:
    assert written(opened(), pb.Event(replaced=pb.Replaced())) == [("replaced", {})]
    assert written(opened(), pb.Event(heartbeat=pb.Heartbeat())) == [("heartbeat", {})]


def test_losses_are_told() -> None:
    writer = opened()
    assert written(writer, pb.Event(gap=pb.Gap(first_frame=9, frames=24))) == [
        ("gap", {"first_frame": 9, "frames": 24})
    ]
    ((kind, data),) = written(writer, pb.Event(error=pb.Error(code=14, message="gone")))
    assert (kind, data["code"]) == ("error", "UNAVAILABLE")


def test_a_recording_that_failed_says_why() -> None:
    error = pb.Error(code=8, message="the disk is full", reason=pb.ERROR_REASON_LIMIT_REACHED)
    ended = pb.Recording(name="film", frames=9, finished=True, error=error)
    ((kind, data),) = written(opened(), pb.Event(recording=ended))
    assert (kind, data["frames"], data["url"]) == ("recording", 9, "recordings/film.mp4")
    assert data["error"] == {
        "code": "RESOURCE_EXHAUSTED",
        "reason": "LIMIT_REACHED",
        "message": "the disk is full",
    }


def test_a_chunk_is_muxed_once_for_all_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = Fragments.segment

    def segment(fragments: Fragments, chunk: Chunk) -> bytes:
        made.append(chunk.block)
        return whole(fragments, chunk)

    monkeypatch.setattr(Fragments, "segment", segment)
    segments, event = SegmentCache(), chunk_event(0, 0, 0, 9)
    state = pb.Event(state=pb.Session(id="one", options=pb.SessionOptions(height=HEIGHT, width=WIDTH)))
    writers = [EventWriter(segments) for _ in range(3)]
    for writer in writers:
        writer.write(state)
    sent = [writer.write(event) for writer in writers]
    assert sent[0] == sent[1] == sent[2]
    assert made == [0]


def test_the_segments_of_a_session_go_with_the_last_who_watches() -> None:
    segments = SegmentCache()
    watched, watched_too = segments.session("one"), segments.session("one")
    assert watched is watched_too
    gone = weakref.ref(watched)
    del watched
    assert gone() is not None
    del watched_too
    assert gone() is None


def test_segments_are_kept_up_to_a_number_of_bytes() -> None:
    session = pb.Session(id="one", options=pb.SessionOptions(height=HEIGHT, width=WIDTH))
    events = [chunk_event(0, block, 12 * block, 12) for block in range(4)]
    size = 2 * max(len(SegmentCache().session("one").of(session, event).data) for event in events)
    for kept_bytes, kept in ((0, 0), (2 * size, 2)):
        segments = SegmentCache(kept_bytes).session("one")
        for event in events:
            assert segments.of(session, event).frames == 12
        assert len(segments._segments) == kept


def test_what_a_session_waits_for_and_why_a_stream_ended_are_said_in_words() -> None:
    waiting = pb.Event(state=pb.Session(state=pb.SESSION_STATE_RUNNING, waiting=pb.WAIT_REASON_SHOWN))
    assert written(opened(), waiting)[0][1]["waiting"] == "shown"
    lost = pb.Event(heartbeat=pb.Heartbeat(waiting=pb.WAIT_REASON_REPLICA))
    assert written(opened(), lost) == [("heartbeat", {"waiting": "replica"})]
    end = pb.StreamEnd(reason=pb.STREAM_END_REASON_TIME_LIMIT, message="it lasts 600 s")
    assert written(opened(), pb.Event(end=end)) == [("end", {"reason": "time_limit", "message": "it lasts 600 s"})]


def test_a_report_that_was_refused_is_answered_without_an_error_for_people() -> None:
    refused = pb.Receipt(command=pb.COMMAND_KIND_SHOWN, stage=pb.RECEIPT_STAGE_REFUSED, error=pb.Error(code=3))
    ((type, data),) = written(opened(), pb.Event(receipt=refused))
    assert (type, data["command"], data["stage"]) == ("receipt", "shown", "refused")


def test_a_viewer_is_told_the_pace_that_is_held() -> None:
    slowed = pb.Slowed(held_fps=11.4567, reason="too much to do")
    assert written(opened(), pb.Event(seq=3, slowed=slowed)) == [
        ("slowed", {"held_fps": 11.46, "reason": "too much to do"})
    ]
    ((_, state),) = written(opened(), pb.Event(state=pb.Session(held_fps=11.4567)))
    ((_, in_time),) = written(opened(), pb.Event(state=pb.Session()))
    assert (state["held_fps"], in_time["held_fps"]) == (11.46, None)

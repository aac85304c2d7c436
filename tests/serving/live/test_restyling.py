"""A camera's pictures pushed to a real server, and the restyled video that comes back."""

from __future__ import annotations

import asyncio
import time

import av
import grpc
import numpy as np

from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.live.camera import restyle
from tests.serving.live.conftest import Server
from tests.serving.live.scenes import NIGHT, NOON, cue
from tests.serving.live.test_sessions import refused
from tests.serving.live.test_websocket import Data, talking
from tests.serving.worker.pictures.clips import encoded, h264, picture


def decoded(chunks: list[pb.Chunk]) -> np.ndarray:
    """Every frame, as a decoder shows it."""
    context, frames = av.CodecContext.create("h264", "r"), []
    for unit in [*(unit for chunk in chunks for unit in chunk.units), None]:
        packet = None if unit is None else av.Packet(unit.data)
        frames += [frame.to_ndarray(format="rgb24") for frame in context.decode(packet)]
    return np.stack(frames)


def test_of_a_cameras_stream_sixteen_frames_a_second_come_back(server: Server) -> None:
    units = h264(120, key_every=15)
    seen = asyncio.run(restyle(server.address, units, "h264", 30.0, 61, NIGHT))
    assert seen.frames == list(range(61))
    assert [len(chunk.units) for chunk in seen.chunks] == [5, *[4] * 14]
    steps = np.diff(seen.pictures)
    assert set(steps) <= {1, 2, 3}
    assert seen.progress.broken == 0
    assert decoded(seen.chunks).shape == (61, 96, 160, 3)


def test_a_camera_that_is_turned_opens_the_video_anew_and_no_frame_is_lost(server: Server) -> None:
    units = [*h264(75), *h264(75, height=160, width=96)]
    seen = asyncio.run(restyle(server.address, units, "h264", 30.0, 73, NIGHT))
    assert seen.frames == list(range(73))
    assert (seen.progress.broken, seen.progress.dropped) == (0, 0)
    steps = np.diff(seen.pictures)
    assert set(steps) <= {1, 2, 3}
    (resized,) = [event.applied for event in seen.events if event.applied.HasField("picture_size")]
    assert (resized.picture_size.height, resized.picture_size.width) == (160, 96)
    first = seen.pictures[seen.frames.index(resized.frame)]
    assert 75 <= first <= 75 + 8


def test_pictures_come_over_a_websocket_too_and_what_is_none_is_told(server: Server) -> None:
    made_of: list[int] = []

    def reached(type: str, data: Data) -> bool:
        made_of.extend(data["pictures"] if type == "pictures" else ())
        return type == "progress" and data["current_start_frame"] >= 17

    with talking(server, "input=video&fit=stretch&noise_scale=0.5&seed=7") as talk:
        state = talk.next("state")
        talk.say("schedule_prompt", new_prompt=NIGHT, timestamp=0)
        talk.say("start")
        talk.until(lambda type, data: data.get("command") == "start")
        talk.show(pb.PICTURE_FORMAT_JPEG, 99, 0, b"no picture")
        for number in range(32):
            data = encoded(picture(number, 120, 90), "JPEG")
            talk.show(pb.PICTURE_FORMAT_JPEG, 100 + number, 1_000_000 * number // 32, data)
            time.sleep(1 / 32)
        talk.say("end_input")
        progress = talk.until(reached)
        talk.say("end")
        talk.next("ended")
    asked = [state[name] for name in ("input", "fit", "noise_scale", "first_block_frames", "block_frames")]
    assert asked == ["video", "stretch", 0.5, 5, 4]
    assert len(made_of) == len(talk.frames) == 17
    assert (made_of[0], made_of[-1]) == (100, 131)
    assert set(np.diff(made_of[:16])) <= {1, 2}
    assert progress["input"] == {"received": 33, "dropped": 0, "broken": 1, "noise_scale": 0.5}


def test_a_cut_is_asked_for_over_a_websocket_and_told_with_the_frame_at_which_it_applies(server: Server) -> None:
    with talking(server, "input=video&seed=7") as talk:
        talk.next("state")
        talk.say("schedule_prompt", new_prompt=NIGHT, timestamp=0)
        talk.say("start")
        talk.until(lambda type, data: data.get("command") == "start")
        for number in range(9):
            talk.show(pb.PICTURE_FORMAT_JPEG, number, 62_500 * number, encoded(picture(number, 120, 90), "JPEG"))
            time.sleep(0.1)
        talk.until(lambda type, data: type == "progress" and data["current_start_frame"] == 9)
        talk.say("cut")
        receipt = talk.until(lambda type, data: data.get("command") == "cut")
        for number in range(9, 13):
            talk.show(pb.PICTURE_FORMAT_JPEG, number, 62_500 * number, encoded(picture(number, 120, 90), "JPEG"))
        applied = talk.until(lambda type, data: type == "applied" and data["frame"] == 9)
        talk.until(lambda type, data: type == "progress" and data["current_start_frame"] == 13)
        talk.say("end")
        talk.next("ended")
    assert (receipt["stage"], receipt["frame"]) == ("accepted", 9)
    assert (applied["text"], applied["restyling"]) == (NIGHT, {"cuts": True})


def test_both_kinds_of_sessions_run_on_one_server(server: Server) -> None:
    options = pb.SessionOptions(seed=3, fps=0, height=64, width=96)
    text = server.stub.CreateSession(pb.CreateSessionRequest(options=options, cues=[cue(NOON, 0)]))
    server.stub.Start(pb.StartRequest(session_id=text.id))
    jpeg = [encoded(picture(number, 120, 90), "JPEG") for number in range(30)]
    seen = asyncio.run(restyle(server.address, jpeg, "jpeg", 16.0, 29, NOON))
    assert seen.frames == list(range(29))
    assert server.stub.GetSession(pb.GetSessionRequest(session_id=text.id)).current_start_frame > 9
    server.stub.DeleteSession(pb.DeleteSessionRequest(session_id=text.id))


def test_what_a_server_restyles_is_said_and_wrong_wishes_are_refused(server: Server) -> None:
    described = server.stub.DescribeServer(pb.DescribeServerRequest())
    assert list(described.inputs) == [pb.INPUT_KIND_NONE, pb.INPUT_KIND_VIDEO]
    assert (described.video_size.height, described.video_size.width) == (96, 160)
    for options, said in (
        (pb.SessionOptions(input=pb.INPUT_KIND_VIDEO, fps=24), "16 frames a second"),
        (pb.SessionOptions(input=pb.INPUT_KIND_VIDEO, noise_scale=1.5), "noise_scale 1.5"),
        (pb.SessionOptions(noise_scale=0.5), "INPUT_KIND_VIDEO"),
        (pb.SessionOptions(input=9), "input 9 is unknown"),  # type: ignore[arg-type]
        (pb.SessionOptions(input=pb.INPUT_KIND_VIDEO, fit=9), "fit 9 is unknown"),  # type: ignore[arg-type]
    ):
        request = pb.CreateSessionRequest(options=options)
        refused(grpc.StatusCode.INVALID_ARGUMENT, said, server.stub.CreateSession, request)

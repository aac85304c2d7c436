"""A camera's pictures pushed to a real server, and the restyled video that comes back."""

from __future__ import annotations

import asyncio

import av
import grpc
import numpy as np

from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.live.camera import restyle
from tests.serving.live.conftest import Server
from tests.serving.live.scenes import NIGHT, NOON, cue
from tests.serving.live.test_sessions import refused
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


def test_both_kinds_of_sessions_run_on_one_server(server: Server) -> None:
    options = pb.SessionOptions(seed=3, fps=0)
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

"""`longtake serve` with stages on onnxruntime: pictures are PyTorch's, also those of a decoder that takes over."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks.harness.replicas import Replicas
from serving.cli.main import main
from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.live.conftest import Server, serving
from tests.serving.live.scenes import described, frames, pictures, playing, watch
from tests.serving.live.test_offline import END, film

pytestmark = pytest.mark.slow

PLAN = "plan pocket --for cpu --library onnxruntime --stage"
SETTINGS = (
    "--decoder-engine onnx --text-engine onnx --denoiser-engine onnx --stages separate --decoders 2 --slots 1"
)


class Streamed(NamedTuple):
    """A session as its log has it, and all that its viewer was sent while a decoder was killed."""

    session: pb.Session
    events: list[pb.Event]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streamed]:
    folder: Path = tmp_path_factory.mktemp("engine")
    for stage in ("decoder", "text", "denoiser"):
        assert main([*shlex.split(PLAN), stage, "--models-dir", str(folder)]) == 0
    with serving(folder / "recordings", *shlex.split(SETTINGS), "--models-dir", str(folder)) as server:
        yield stream(server)


def stream(server: Server) -> Streamed:
    session, events = playing(server.stub), list[pb.Event]()
    with Replicas(server.logs) as replicas:
        for event in watch(server.stub, session):
            events.append(event)
            if event.HasField("chunk") and event.chunk.first_frame == 33:
                replicas.send(signal.SIGKILL, "VideoDecoder", "decoder opened", session.id)
            if event.HasField("chunk") and event.chunk.first_frame + len(event.chunk.units) >= END:
                return Streamed(described(server.stub, session), events)
    raise AssertionError("the stream ended")


def test_no_frame_is_lost_or_seen_twice_with_a_decoder(streamed: Streamed) -> None:
    assert frames(streamed.events) == list(range(END))
    assert sum(event.HasField("resumed") for event in streamed.events) == 1


def test_every_picture_is_within_one_step_of_a_film_by_pytorch(streamed: Streamed, tmp_path: Path) -> None:
    seen = pictures(event.chunk for event in streamed.events if event.HasField("chunk"))
    steps = seen.astype(float) - film(tmp_path, streamed.session)
    # Of a value that is rounded otherwise H.264 makes several.
    assert np.square(steps).mean(axis=(1, 2, 3)).max() <= 1


def test_a_session_says_what_runs_its_stages(streamed: Streamed) -> None:
    assert streamed.session.provenance.kernels.endswith(
        "decoder engine: onnx; text engine: onnx; denoiser engine: onnx"
    )

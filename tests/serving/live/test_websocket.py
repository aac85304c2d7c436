"""Clients of the WebSocket that know nothing of Python, and what becomes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.web.outbound import FRAMES, HEAD
from serving.web.pictures import HEAD as PICTURE_HEAD
from tests.serving.live.conftest import SLOTS, Server
from tests.serving.live.scenes import NIGHT, NOON
from tests.serving.live.test_steering import Stub

SCRIPT = Path(__file__).with_name("published_protocol.mjs")

Data = dict[str, Any]


class Talk:
    """A WebSocket whose texts and frames are kept as they come."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.frames: list[int] = []
        self.seqs: list[int] = []

    def say(self, type: str, **data: object) -> None:
        self._socket.send(json.dumps({"type": type, "data": data}))

    def show(self, format: pb.PictureFormat, id: int, time_us: int, data: bytes) -> None:
        self._socket.send(PICTURE_HEAD.pack(format, id, time_us) + data)

    def until(self, reached: Callable[[str, Data], bool]) -> Data:
        while True:
            message = self._socket.recv(timeout=30)
            if isinstance(message, bytes):
                kind, _, first, frames, seq = HEAD.unpack_from(message)
                self.frames += range(first, first + frames) if kind == FRAMES else ()
                self.seqs += [seq] if seq else []
                continue
            read = json.loads(message)
            self.seqs += [read["seq"]] if "seq" in read else []
            if reached(read["type"], read["data"]):
                found: Data = read["data"]
                return found

    def next(self, type: str) -> Data:
        return self.until(lambda found, _: found == type)


def test_an_address_of_any_length_is_answered_in_words(server: Server) -> None:
    for query in (f"model={'a' * 9_000}", f"{'a' * 70_000}=1", f"client_id={'a' * 9_000}"):
        with talking(server, query) as talk:
            assert talk.next("error")["code"] == "INVALID_ARGUMENT"


@contextmanager
def talking(server: Server, query: str = "fps=16&seed=7") -> Iterator[Talk]:
    with connect(f"ws://127.0.0.1:{server.http_port}/ws?{query}", max_size=None) as socket:
        yield Talk(socket)


def viewers(stub: Stub, session: str) -> int:
    return stub.GetSession(pb.GetSessionRequest(session_id=session)).viewers


def test_a_session_is_steered_by_messages_alone(server: Server, stub: Stub) -> None:
    with talking(server) as talk:
        talk.say("schedule_prompt", new_prompt=NOON, timestamp=0)
        talk.say("start")
        talk.until(lambda type, data: type == "progress" and data["current_start_frame"] >= 21)
        talk.say("schedule_prompt", new_prompt=NIGHT)
        switched = talk.until(lambda type, data: data.get("event") == "prompt_switched" and data["frame"] > 0)
        talk.until(lambda type, data: type == "progress" and data["current_start_frame"] > switched["frame"])
    assert switched["previous_prompt"] == NOON
    assert talk.frames == list(range(len(talk.frames)))
    assert len(talk.frames) > switched["frame"]
    assert set(talk.seqs) == set(range(talk.seqs[0], talk.seqs[-1] + 1))


def test_what_cannot_be_done_is_answered_in_words_and_ends_nothing(server: Server, stub: Stub) -> None:
    with talking(server) as talk:
        talk.say("dance")
        unknown = talk.next("receipt")
        talk.say("start")
        early = talk.next("receipt")
        talk.say("schedule_prompt", new_prompt=NOON, timestamp=0)
        talk.until(lambda type, data: type == "receipt" and data["stage"] == "accepted")
    assert "the type 'dance' is unknown" in unknown["error"]["message"]
    assert early["error"]["code"] == "FAILED_PRECONDITION"
    assert "no cue is at frame 0" in early["error"]["message"]


def test_a_client_that_comes_back_misses_no_frame(server: Server, stub: Stub) -> None:
    with talking(server) as talk:
        session = talk.next("state")["session"]
        talk.say("schedule_prompt", new_prompt=NOON, timestamp=0)
        talk.say("start")
        talk.until(lambda type, data: type == "progress" and data["current_start_frame"] >= 33)
    with talking(server, f"session={session}&from={len(talk.frames)}&take=0") as again:
        again.until(lambda type, data: type == "progress" and data["current_start_frame"] >= 69)
    assert talk.frames + again.frames == list(range(again.frames[-1] + 1))


def test_a_client_that_has_gone_is_no_viewer(server: Server, stub: Stub) -> None:
    with talking(server) as talk:
        session = talk.next("state")["session"]
        assert viewers(stub, session) == 1
    until = time.monotonic() + 5
    while viewers(stub, session) and time.monotonic() < until:
        time.sleep(0.05)
    assert viewers(stub, session) == 0


def test_one_session_too_many_is_refused_with_the_reason(server: Server, stub: Stub) -> None:
    for _ in range(SLOTS):
        stub.CreateSession(pb.CreateSessionRequest())
    with talking(server) as talk:
        error = talk.next("error")
        with pytest.raises(ConnectionClosed) as closed:
            talk.next("state")
    assert error["code"] == "RESOURCE_EXHAUSTED"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_a_script_of_the_published_protocol_is_understood(server: Server, stub: Stub) -> None:
    address = f"ws://127.0.0.1:{server.http_port}/ws?seed=7"
    command = ["node", "--no-warnings", "--experimental-websocket", str(SCRIPT), address]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(ran.stdout)
    switches = [event["frame"] for event in told["events"] if event["event"] == "prompt_switched"]
    assert told["progress"][:5] == [0, 9, 21, 33, 45]
    assert told["progress"][-1] == 0
    assert switches == [0, 33]


def test_a_page_from_elsewhere_gets_no_connection_and_hears_why(server: Server) -> None:
    address = f"ws://127.0.0.1:{server.http_port}/ws"
    with pytest.raises(InvalidStatus) as refused, connect(address, origin=Origin("http://elsewhere.example")):
        pass
    assert refused.value.response.status_code == 403
    assert b"--allowed-origins" in refused.value.response.body
    with connect(f"{address}?watch=1", origin=Origin(f"http://127.0.0.1:{server.http_port}")) as socket:
        assert json.loads(socket.recv())["data"]["message"].startswith("watch needs a session")

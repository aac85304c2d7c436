from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fastapi.websockets import WebSocketDisconnect

from serving.auth import Caller
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.web.app import web_app
from serving.web.pictures import HEAD

Events = AsyncIterator[SerializedEvent]


def standing(state: pb.SessionState, *cues: pb.Cue) -> pb.Session:
    return pb.Session(id="s", state=state, pending=cues)


class Overtaken:
    """A session that is started while somebody asks how it stands, who is told how it stood."""

    def __init__(self) -> None:
        self.asked, self.started = asyncio.Event(), asyncio.Event()

    def authenticate(self, token: str | None) -> Caller:
        return Caller("")

    async def create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        return standing(pb.SESSION_STATE_READY)

    async def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> Events:
        async for command in commands:
            if command.HasField("attach"):
                yield SerializedEvent.of(pb.Event(state=standing(pb.SESSION_STATE_READY)))
                continue
            kind, stage = pb.COMMAND_KIND_SCHEDULE_PROMPT, pb.RECEIPT_STAGE_ACCEPTED
            yield SerializedEvent.of(
                pb.Event(seq=1, receipt=pb.Receipt(command_id=command.id, command=kind, stage=stage))
            )
            await self.asked.wait()
            yield SerializedEvent.of(pb.Event(seq=2, state=standing(pb.SESSION_STATE_RUNNING)))
            self.started.set()

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        if self.started.is_set():
            return standing(pb.SESSION_STATE_RUNNING, pb.Cue(frame=9))
        self.asked.set()
        await self.started.wait()
        return standing(pb.SESSION_STATE_READY)


class Noting:
    """Notes what it is asked for, and answers nothing but how a session stands."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def authenticate(self, token: str | None) -> Caller:
        return Caller("")

    def admit(self, caller: Caller) -> None:
        pass

    async def create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        self.asked.append(request)
        return standing(pb.SESSION_STATE_READY)

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        return standing(pb.SESSION_STATE_READY)

    async def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> Events:
        async for command in commands:
            self.asked.append(command)
            yield SerializedEvent.of(pb.Event(state=standing(pb.SESSION_STATE_READY)))

    async def start_recording(self, request: pb.StartRecordingRequest, caller: Caller) -> pb.Recording:
        self.asked.append(request)
        return pb.Recording()


def asked_for(address: str, *messages: dict[str, str]) -> list[Any]:
    """What the sessions are asked for by a client that sends `messages`, each answered by one."""
    sessions: Any = Noting()
    with TestClient(web_app(sessions)).websocket_connect(address) as socket:
        socket.receive_json()
        for message in messages:
            socket.send_json(message)
            socket.receive_json()
    asked: list[Any] = sessions.asked
    return asked


def test_the_ids_of_a_client_go_with_all_that_it_asks_for() -> None:
    messages = ({"type": "start", "id": "2"}, {"type": "start_recording", "id": "3"})
    opening, attach, start, recording = asked_for("/ws?client_id=ann&command_id=1", *messages)
    assert (opening.client_id, opening.command_id) == ("ann", "1")
    assert (attach.client_id, attach.attach.reattach, start.id) == ("ann", False, "2")
    assert recording == pb.StartRecordingRequest(session_id="s", client_id="ann", command_id="3")


def schedule(id: str, data: str) -> str:
    return f'{{"type": "schedule_prompt", "id": "{id}", "data": {data}}}'


BAD_MESSAGES = [
    (schedule("a", r'{"new_prompt": "a \ud800 lake"}'), "a", "new_prompt: the prompt contains"),
    (r'{"type": "resume", "id": "\ud800"}', "", "id: the text contains"),
    (r'{"type": "\udfff", "id": "b"}', "b", "type: the text contains"),
    (r'{"type": "start", "\ud800": 1, "id": "c"}', "c", r"the field '\ud800' is unknown"),
    (r'{"type": "start", "id": "d", "data": {"\udc00": 1}}', "d", r"the field '\udc00' is unknown"),
    (schedule("e", '{"prompts": [{"text": "a", "weight": NaN}]}'), "e", "prompts[0].weight: nan"),
    (schedule("f", '{"prompts": [{"text": "a", "weight": 1e999}]}'), "f", "prompts[0].weight: inf"),
    (schedule("g", '{"prompts": [{"text": "a", "weight": 0}]}'), "g", "prompts: all weights are 0"),
    (schedule("h", '{"new_prompt": "&nbsp;"}'), "h", "new_prompt: the prompt is empty"),
    (schedule("i", '{"new_prompt": "a", "timestamp": 1e300}'), "i", "timestamp: 1e+300 is no frame"),
    (r'{"type": "shown", "id": "j", "data": {"frame": 9223372036854775808}}', "j", "shown.frame: 92233720"),
    (schedule("k", f'{{"prompts": [{"0," * 200_000}0]}}'), "k", "prompts: 200001 prompts are blended"),
]


@pytest.mark.parametrize(("message", "id", "words"), BAD_MESSAGES, ids=[f"id {id}" for _, id, _ in BAD_MESSAGES])
def test_a_message_that_cannot_be_is_refused_under_its_id_and_the_socket_lives(
    message: str, id: str, words: str
) -> None:
    sessions: Any = Noting()
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        socket.receive_json()
        socket.send_text(message)
        refused = socket.receive_json()["data"]
        assert (refused["command_id"], refused["stage"]) == (id, "refused")
        assert words in refused["error"]["message"]
        assert socket.receive_json()["data"]["event"] == "error"
        socket.send_json({"type": "start", "id": "after"})
        socket.receive_json()
        assert sessions.asked[-1].id == "after"


def test_a_client_that_sends_nonsense_without_end_is_answered_each_time_and_fills_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions: Any = Noting()
    with (
        caplog.at_level(logging.INFO, "serving"),
        TestClient(web_app(sessions)).websocket_connect("/ws") as socket,
    ):
        socket.receive_json()
        for number in range(200):
            socket.send_text(f"nonsense {number}")
            assert socket.receive_json()["data"]["stage"] == "refused"
            socket.receive_json()
    assert 0 < caplog.messages.count("request refused") < 100


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/ws?session=s&from=99999999999999999999", "from"),
        ("/ws?lease_s=nan", "lease_s"),
        ("/ws?seed=18446744073709551616", "seed"),
        ("/ws?fps=2147483648", "fps"),
        (f"/ws?{'x' * 5000}=1", "the parameter 'xxx"),
        ("/ws?seed=1&seed=2", "the parameter 'seed' comes twice"),
        ("/ws?session=s&watch=no", "watch is 'no'; known: 0, false, 1, true"),
    ],
)
def test_an_address_that_cannot_be_is_refused_by_name(address: str, name: str) -> None:
    sessions: Any = Noting()
    with TestClient(web_app(sessions)).websocket_connect(address) as socket:
        error = socket.receive_json()
        assert (error["type"], error["data"]["message"].startswith(name)) == ("error", True)
        assert socket.receive()["code"] == 1008


def test_a_client_that_comes_back_says_so() -> None:
    (attach,) = asked_for("/ws?session=s&client_id=ann&reattach=1")
    assert (attach.client_id, attach.attach.session_id, attach.attach.reattach) == ("ann", "s", True)


def test_a_state_that_was_overtaken_is_asked_for_again() -> None:
    sessions: Any = Overtaken()
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        socket.send_json({"type": "schedule_prompt", "data": {"new_prompt": "night", "timestamp": 9}})
        heard: list[dict[str, Any]] = []
        while len(heard) < 3:
            message = socket.receive_json()
            heard += [message["data"]] if message["type"] == "state" else []
    assert [state["state"] for state in heard] == ["ready", "running", "running"]
    assert [len(state["pending"]) for state in heard] == [0, 0, 1]


def test_a_picture_reaches_the_session_as_it_was_sent() -> None:
    sessions: Any = Noting()
    with TestClient(web_app(sessions)).websocket_connect("/ws?input=video") as socket:
        socket.receive_json()
        socket.send_bytes(HEAD.pack(pb.PICTURE_FORMAT_JPEG, 7, 62_500) + b"a picture")
        socket.receive_json()
        socket.send_json({"type": "end_input"})
        socket.receive_json()
    _, _, sent, end = sessions.asked
    assert sent.picture == pb.Picture(id=7, time_us=62_500, format=pb.PICTURE_FORMAT_JPEG, data=b"a picture")
    assert end.HasField("end_input")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "the binary message has 0 bytes; a picture comes behind a head of 20"),
        (HEAD.pack(1, 7, 0), "the binary message has 20 bytes"),
        (HEAD.pack(4, 7, 0) + b"x", "picture format 4 is unknown; known: 1 (JPEG)"),
        (HEAD.pack(0, 7, 0) + b"x", "picture format 0 is unknown"),
        (HEAD.pack(1, 1 << 53, 0) + b"x", "the picture's id is 9007199254740992; it must be at most"),
        (HEAD.pack(1, 7, (1 << 64) - 1) + b"x", "the picture's time is 18446744073709551615"),
    ],
    ids=["empty", "head", "format", "none", "id", "time"],
)
def test_what_is_no_picture_is_refused_in_words_and_the_socket_lives(message: bytes, words: str) -> None:
    sessions: Any = Noting()
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        socket.receive_json()
        socket.send_bytes(message)
        refused = socket.receive_json()["data"]
        assert (refused["command"], refused["stage"]) == ("picture", "refused")
        assert words in refused["error"]["message"]
        socket.receive_json()
        socket.send_json({"type": "start"})
        socket.receive_json()
    assert sessions.asked[-1].HasField("start")


def test_one_who_only_watches_sends_no_pictures() -> None:
    class Watched(Noting):
        async def watch(self, request: pb.WatchRequest, caller: Caller) -> Events:
            yield SerializedEvent.of(pb.Event(state=standing(pb.SESSION_STATE_READY)))
            await asyncio.Future()

    sessions: Any = Watched()
    with TestClient(web_app(sessions)).websocket_connect("/ws?session=s&watch=1") as socket:
        socket.receive_json()
        socket.send_bytes(HEAD.pack(1, 7, 0) + b"x")
        assert "only watches" in socket.receive_json()["data"]["error"]["message"]


class Prompted(Noting):
    """A session that many watch, of which a cue applies once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.applies = threading.Event()
        self.times_asked = 0

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        self.times_asked += 1
        return standing(pb.SESSION_STATE_RUNNING)

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> Events:
        yield SerializedEvent.of(pb.Event(seq=1, state=standing(pb.SESSION_STATE_READY)))
        await asyncio.to_thread(self.applies.wait, 20)
        yield SerializedEvent.of(pb.Event(seq=2, applied=pb.AppliedCue(frame=9)))
        await asyncio.Future()


def test_a_session_is_asked_once_how_it_stands_for_all_who_watch_it() -> None:
    sessions: Any = Prompted()
    with TestClient(web_app(sessions)) as client, ExitStack() as watching:
        address = "/ws?session=s&watch=1"
        sockets = [watching.enter_context(client.websocket_connect(address)) for _ in range(3)]
        for socket in sockets:
            assert socket.receive_json()["data"]["state"] == "ready"
        asked = sessions.times_asked
        sessions.applies.set()
        for socket in sockets:
            while (message := socket.receive_json())["type"] != "state":
                continue
            assert message["data"]["state"] == "running"
    assert sessions.times_asked == asked + 1


class Failing(Noting):
    """Fails at one of its methods as nobody foresaw."""

    def __init__(self, method: str) -> None:
        super().__init__()
        setattr(self, method, self.fail)

    async def fail(self, *_: Any) -> Any:
        raise RuntimeError("a bug")

    async def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> Events:
        async for sent in super().interact(commands, caller):
            yield sent
            if self.asked[-1].HasField("pause"):
                raise RuntimeError("a bug")


@pytest.mark.parametrize("when", ["create", "interact"])
def test_a_socket_that_fails_as_nobody_foresaw_says_so_and_closes_with_1011(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions: Any = Failing(when if when == "create" else "none")
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        if when == "interact":
            socket.receive_json()
            socket.send_json({"type": "pause"})
            socket.receive_json()
        error = socket.receive_json()
        assert (error["type"], error["data"]["code"]) == ("error", "INTERNAL")
        assert socket.receive()["code"] == 1011
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


@pytest.mark.parametrize("what", ["fork", "start_recording"])
def test_a_request_that_fails_as_nobody_foresaw_is_refused_and_the_socket_lives(what: str) -> None:
    sessions: Any = Failing(what)
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": what, "id": "a"})
        refused = socket.receive_json()["data"]
        assert (refused["command_id"], refused["stage"], refused["error"]["code"]) == ("a", "refused", "INTERNAL")
        socket.receive_json()
        socket.send_json({"type": "start", "id": "after"})
        socket.receive_json()
    assert sessions.asked[-1].id == "after"


class Forking(Noting):
    """Forks for as long as somebody waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    async def fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.Session:
        self.asked.append(request)
        try:
            return await asyncio.Future()
        finally:
            self.stopped.set()


def test_what_a_client_asked_for_is_given_up_when_it_goes() -> None:
    sessions: Any = Forking()
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "fork"})
        socket.send_json({"type": "start"})
        socket.receive_json()
    assert sessions.stopped.wait(20)


class Ending(Noting):
    """A session whose stream ends before whoever ended it has the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = asyncio.Event()

    async def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> Events:
        yield SerializedEvent.of(pb.Event(state=standing(pb.SESSION_STATE_READY)))
        await self.ends.wait()

    async def delete(self, session_id: str, caller: Caller) -> None:
        self.ends.set()
        await asyncio.sleep(0.1)


def test_whoever_ends_a_session_is_answered_before_its_stream_closes() -> None:
    sessions: Any = Ending()
    with TestClient(web_app(sessions)).websocket_connect("/ws") as socket:
        assert socket.receive_json()["type"] == "state"
        socket.send_json({"type": "end", "id": "1"})
        assert socket.receive_json()["type"] == "ended"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert closed.value.code == 1001

"""A server that asks for tokens: who has none gets nothing, and no caller reaches what is another's."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from benchmarks.harness.browser import CHROMIUM, DRIVER, browsing
from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.live.conftest import Server, serving
from tests.serving.live.scenes import METHODS, NOON, code_of

OF_THE_CALLER = (
    *("CreateSession", "ListSessions", "RestoreSession", "ListRecordings"),
    *("DescribeServer", "GetServerInfo"),
    *("EvacuateServer", "OfferSession", "ImportSession", "SettleTransfer"),
)
ABOUT_A_SESSION = [method for method in METHODS if method.name not in OF_THE_CALLER]
SESSIONS_PER_TOKEN = 2
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium is not installed: `make .venv/browser`"
)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that lets Anna and Berta in."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "tokens").write_text("anna secret-a\nberta secret-b\n")
    limit = ("--limits.sessions-per-token", str(SESSIONS_PER_TOKEN))
    options = ("--tokens", str(folder / "tokens"), *limit, "--slots", "4")
    with serving(folder / "recordings", *options) as running:
        yield running


class Caller:
    """Calls the server with a token, or without one."""

    def __init__(self, server: Server, token: str | None) -> None:
        self.stub = server.stub
        self.metadata = [] if token is None else [("authorization", f"Bearer {token}")]

    def __call__(self, method: str, request: Message) -> Any:
        """The answer of a unary method, or the first one of a stream. Raises grpc.RpcError."""
        call: Callable[..., Any] = getattr(self.stub, method)
        asked = iter([request]) if method == "Interact" else request
        answer = call(asked, metadata=self.metadata, timeout=20)
        return next(answer) if isinstance(answer, Iterator) else answer

    def refusal(self, method: str, request: Message) -> grpc.StatusCode | None:
        """How a call is refused; None if it is not."""
        return code_of(lambda: self(method, request))


@pytest.fixture
def anna(closed: Server) -> Iterator[Caller]:
    caller = Caller(closed, "secret-a")
    yield caller
    for session in caller("ListSessions", pb.ListSessionsRequest()).sessions:
        caller("DeleteSession", pb.DeleteSessionRequest(session_id=session.id))


@pytest.fixture
def berta(closed: Server) -> Caller:
    return Caller(closed, "secret-b")


def request_of(method: Any, session: str, recording: str) -> Message:
    """The smallest request of a method that names a session, or a recording."""
    if method.name == "Interact":
        return pb.Command(attach=pb.Attach(session_id=session))
    request = GetMessageClass(method.input_type)()
    for field, value in (("session_id", session), ("name", recording)):
        if field in method.input_type.fields_by_name:
            setattr(request, field, value)
    return request


def recorded(caller: Caller, session: str) -> str:
    """The name of a finished recording."""
    name: str = caller("StartRecording", pb.StartRecordingRequest(session_id=session)).name
    caller("SchedulePrompt", pb.SchedulePromptRequest(session_id=session, cue=NOW))
    caller("Start", pb.StartRequest(session_id=session))
    watching = pb.WatchRequest(session_id=session, from_frame=0)
    stream = caller.stub.Watch(watching, metadata=caller.metadata, timeout=20)
    next(event for event in stream if event.HasField("chunk") and event.chunk.first_frame >= 21)
    stream.cancel()
    caller("StopRecording", pb.StopRecordingRequest(session_id=session))
    return name


NOW = pb.Cue(prompts=[pb.WeightedPrompt(text=NOON)])


@pytest.mark.parametrize("token", [None, "secret-c", "", "secret-a secret-b"])
@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_who_has_no_token_is_told_nothing(closed: Server, method: Any, token: str | None) -> None:
    refused = Caller(closed, token).refusal(method.name, request_of(method, "some-session", "some-recording"))
    assert refused is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", ABOUT_A_SESSION, ids=[method.name for method in ABOUT_A_SESSION])
def test_what_is_another_callers_is_not_there(anna: Caller, berta: Caller, method: Any) -> None:
    session = anna("CreateSession", pb.CreateSessionRequest()).id
    recording = recorded(anna, session) if method.name in ("ReadRecording", "DeleteRecording") else ""
    assert berta.refusal(method.name, request_of(method, session, recording)) is grpc.StatusCode.NOT_FOUND
    assert anna("GetSession", pb.GetSessionRequest(session_id=session)).id == session


def test_a_caller_lists_and_reads_what_is_its_own(anna: Caller, berta: Caller) -> None:
    session = anna("CreateSession", pb.CreateSessionRequest()).id
    assert [found.id for found in anna("ListSessions", pb.ListSessionsRequest()).sessions] == [session]
    assert not berta("ListSessions", pb.ListSessionsRequest()).sessions
    name = recorded(anna, session)
    assert anna("ReadRecording", pb.ReadRecordingRequest(name=name)).data
    assert name in [found.name for found in anna("ListRecordings", pb.ListRecordingsRequest()).recordings]
    assert not berta("ListRecordings", pb.ListRecordingsRequest()).recordings


def test_a_caller_has_so_many_sessions_and_no_more(anna: Caller, berta: Caller) -> None:
    for _ in range(SESSIONS_PER_TOKEN):
        anna("CreateSession", pb.CreateSessionRequest())
    with pytest.raises(grpc.RpcError, match="anna has 2 sessions, and may have no more; end one"):
        anna("CreateSession", pb.CreateSessionRequest())
    others = berta("CreateSession", pb.CreateSessionRequest()).id
    berta("DeleteSession", pb.DeleteSessionRequest(session_id=others))


def test_of_many_sessions_at_once_a_caller_gets_as_many_as_it_may_have(anna: Caller) -> None:
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(anna.refusal, "CreateSession", pb.CreateSessionRequest()) for _ in range(20)]
    codes = [one.result() for one in asked]
    assert codes.count(None) == SESSIONS_PER_TOKEN
    assert set(codes) == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_recording_over_http_is_its_callers(closed: Server, anna: Caller) -> None:
    session = anna("CreateSession", pb.CreateSessionRequest()).id
    address = f"http://127.0.0.1:{closed.http_port}/recordings/{recorded(anna, session)}.mp4"
    codes = {}
    for token in ("secret-a", "secret-b", "secret-c"):
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request) as answer:
                codes[token] = answer.status
        except urllib.error.HTTPError as error:
            codes[token] = error.code
    assert codes == {"secret-a": 200, "secret-b": 404, "secret-c": 401}


def test_a_caller_who_is_added_to_the_file_is_let_in_and_may_record(closed: Server) -> None:
    dora, asked = Caller(closed, "secret-d"), pb.ListRecordingsRequest()
    assert dora.refusal("ListRecordings", asked) is grpc.StatusCode.UNAUTHENTICATED
    with (closed.recordings.parent / "tokens").open("a") as tokens:
        tokens.write("dora secret-d\n")
    until = time.monotonic() + 20
    while dora.refusal("ListRecordings", asked) is not None:
        assert time.monotonic() < until
        time.sleep(0.5)
    assert not dora("ListRecordings", asked).recordings


@NEEDS_CHROMIUM
def test_another_token_on_the_page_leads_to_where_it_was(closed: Server, anna: Caller, tmp_path: Path) -> None:
    with browsing(f"http://127.0.0.1:{closed.http_port}", tmp_path) as page:
        page.open("#seed=7")
        page.write("text", NOON)
        page.press("go")
        page.until(lambda: "a token is missing" in page.part("notices").text.lower())
        page.write("token", "secret-a\n")
        page.press("go")
        page.until_frame(30)
        session = page.session
        page.write("token", "secret-b\n")
        page.until(lambda: "no session" in page.part("notices").text.lower())
        page.write("token", "secret-a\n")
        page.until(lambda: page.state == "running" and page.frame > 0)
        page.until_frame(page.frame + 24)
        page.driver.refresh()
        page.until(lambda: page.state == "running" and page.frame > 0)
        assert page.session == session


@NEEDS_CHROMIUM
def test_the_page_asks_for_a_token_and_works_with_it(closed: Server, anna: Caller, tmp_path: Path) -> None:
    with browsing(f"http://127.0.0.1:{closed.http_port}", tmp_path) as page:
        page.open()
        page.write("text", NOON)
        page.press("go")
        page.until(lambda: "token" in page.part("notices").text)
        page.part("token").send_keys("secret-a")
        page.start(NOON)
        assert anna("GetSession", pb.GetSessionRequest(session_id=page.session)).state == pb.SESSION_STATE_RUNNING
        assert "secret-a" not in page.driver.current_url

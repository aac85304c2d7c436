"""The page in Chromium, over sessions that only say how they stand: there is no cluster behind it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from benchmarks.harness.browser import CHROMIUM, DRIVER, PATIENCE_S, Page, browsing
from serving.auth import Caller
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.web.app import web_app

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed: `make .venv/browser`"
)

SESSION = pb.Session(id="s", state=pb.SESSION_STATE_RUNNING, shown_frame=-1, broken_picture="it is a ribbon")

ELSEWHERE = "longtake.test"
"""A name of another machine, as far as the browser knows."""


class Standing:
    """A session that runs, of which nothing but heartbeats comes; they say what it waits for."""

    def __init__(self) -> None:
        self.waiting: pb.WaitReason = pb.WAIT_REASON_UNSPECIFIED
        self.tokens: list[str | None] = []
        self.server = pb.DescribeServerResponse(model="pocket")
        self.created: list[pb.SessionOptions] = []

    def authenticate(self, token: str | None) -> Caller:
        self.tokens.append(token)
        return Caller("")

    async def describe_server(self, caller: Caller) -> pb.DescribeServerResponse:
        return self.server

    async def create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        self.created.append(request.options)
        return SESSION

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        return SESSION

    async def interact(
        self, commands: AsyncIterator[pb.Command], caller: Caller
    ) -> AsyncIterator[SerializedEvent]:
        yield SerializedEvent.of(pb.Event(state=SESSION))
        while True:
            await asyncio.sleep(0.1)
            yield SerializedEvent.of(pb.Event(heartbeat=pb.Heartbeat(waiting=self.waiting)))


@contextmanager
def answering(sessions: Any) -> Iterator[int]:
    """The web application over some sessions, on a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(web_app(sessions), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


@pytest.fixture
def sessions() -> Standing:
    return Standing()


@pytest.fixture
def page(sessions: Standing, tmp_path: Path) -> Iterator[Page]:
    """Not opened yet; `port` of its address leads to the sessions from every name."""
    with answering(sessions) as port:
        here = f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"
        with browsing(f"http://{ELSEWHERE}:{port}", tmp_path, here) as page:
            yield page


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (pb.WAIT_REASON_PROMPT, "the prompt, which is being encoded"),
        (pb.WAIT_REASON_SHOWN, "its viewer"),
        (pb.WAIT_REASON_VIEWER, "somebody who watches"),
        (pb.WAIT_REASON_INPUT, "pictures, of which none that can be shown has come for a second: it is a ribbon."),
        (pb.WAIT_REASON_SERVER, "the server"),
        (pb.WAIT_REASON_REPLICA, "another replica"),
    ],
)
def test_the_page_says_what_its_session_waits_for(
    page: Page, sessions: Standing, reason: pb.WaitReason, words: str
) -> None:
    page.open("#session=s")
    page.until(lambda: page.state == "running")
    assert not page.part("waiting").is_displayed()
    sessions.waiting = reason
    page.until(lambda: page.part("waiting").text.startswith(f"Waiting for {words}"))
    sessions.waiting = pb.WAIT_REASON_UNSPECIFIED
    page.until(lambda: not page.part("waiting").is_displayed())


def test_a_token_leaves_the_machine_in_the_clear_only_if_a_person_says_so(page: Page, sessions: Standing) -> None:
    page.open("#session=s")
    page.until(lambda: page.state == "running")
    page.part("new-session").click()
    page.write("token", "geheim\n")
    page.until(lambda: f"The token would go to {ELSEWHERE}" in page.part("notices").text)
    page.until(lambda: page.state == "none")
    assert "geheim" not in sessions.tokens
    page.part("insecure").click()
    page.until(lambda: page.state == "running")
    assert sessions.tokens[-1] == "geheim"
    page.driver.refresh()
    page.until(lambda: page.state == "running")


def test_a_token_for_this_machine_is_sent_without_a_word(page: Page, sessions: Standing) -> None:
    page.address = page.address.replace(ELSEWHERE, "localhost")
    page.open("#session=s")
    page.part("new-session").click()
    page.write("token", "geheim\n")
    page.until(lambda: page.state == "running" and "geheim" in sessions.tokens)
    assert not page.part("insecure").is_displayed()
    assert not page.part("notices").text


def test_a_server_that_declares_its_sizes_is_asked_for_one_of_those(page: Page, sessions: Standing) -> None:
    sizes = [pb.PictureSize(height=height, width=width) for height, width in ((96, 160), (64, 96))]
    sessions.server = pb.DescribeServerResponse(model="pocket", sizes=sizes, other_sizes=False)
    page.open()
    page.driver.find_element(By.CSS_SELECTOR, "#new-session summary").click()
    offered = Select(page.part("sizes"))
    usual, other = "160 \u00d7 96 (the model's)", "96 \u00d7 64"
    page.until(lambda: [option.text for option in offered.options] == [usual, other])
    offered.select_by_visible_text(other)
    page.write("text", "a red balloon over hills")
    page.press("go")
    page.until(lambda: sessions.created)
    assert (sessions.created[0].height, sessions.created[0].width) == (64, 96)

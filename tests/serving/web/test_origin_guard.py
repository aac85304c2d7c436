"""Pages from elsewhere, at the doors of the web application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from engines.config.presets import preset
from serving.config import ServerConfig
from serving.gateway.session_service import SessionService
from serving.origins import Origins
from serving.replication.register import MemoryRegister
from serving.web.app import web_app

ELSEWHERE, FRIEND, OWN = "http://elsewhere.example", "https://friend.example", "http://testserver"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    nobody: Any = None
    config = ServerConfig(recordings=tmp_path)
    sessions = SessionService(nobody, MemoryRegister(), config, preset("pocket"), "here")
    return TestClient(web_app(sessions, Origins((FRIEND,))))


def test_a_page_from_elsewhere_gets_no_socket_and_the_reason(client: TestClient) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/ws", headers={"origin": ELSEWHERE}),
    ):
        pass
    assert refused.value.status_code == 403
    assert "--allowed-origins" in refused.value.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{}, {"origin": OWN}, {"origin": FRIEND}], ids=["program", "own page", "friend"]
)
def test_programs_the_own_page_and_a_friend_get_one(client: TestClient, headers: dict[str, str]) -> None:
    with client.websocket_connect("/ws?watch=1", headers=headers) as socket:
        assert socket.receive_json()["data"]["message"].startswith("watch needs a session")


def test_a_page_from_elsewhere_has_nothing_done_and_reads_nothing(client: TestClient) -> None:
    posted = client.post("/timelines", content="cues: 3", headers={"origin": ELSEWHERE})
    asked = client.get("/", headers={"origin": ELSEWHERE})
    preflight = {"origin": ELSEWHERE, "access-control-request-method": "POST"}
    assert (posted.status_code, asked.status_code) == (403, 200)
    assert client.options("/timelines", headers=preflight).status_code == 400
    for answer in (posted, asked):
        assert "access-control-allow-origin" not in answer.headers


def test_a_friend_reads_what_it_asks_for(client: TestClient) -> None:
    answer = client.get("/static/longtake.js", headers={"origin": FRIEND})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, FRIEND)


def test_a_name_that_was_pointed_here_leads_to_nothing(tmp_path: Path) -> None:
    nobody: Any = None
    config = ServerConfig(recordings=tmp_path)
    sessions = SessionService(nobody, MemoryRegister(), config, preset("pocket"), "here")
    rebound = TestClient(web_app(sessions, config.origins), base_url=ELSEWHERE)
    assert rebound.get("/").status_code == 403
    with pytest.raises(WebSocketDenialResponse), rebound.websocket_connect("/ws", headers={"origin": ELSEWHERE}):
        pass


@pytest.mark.parametrize("host", ["[", "[::1:80"])
def test_a_request_for_what_is_no_host_is_refused_at_every_door(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_REQUEST")
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/ws", headers={"host": host}),
    ):
        pass
    assert refused.value.status_code == 400

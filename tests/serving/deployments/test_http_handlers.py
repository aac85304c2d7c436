"""What clients are told by a proxy of Serve whose application does not answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve._private.http_util import (
    convert_object_to_asgi_messages,
    get_http_response_status,
    send_http_response_on_exception,
)
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from serving.deployments.grpc_handlers import LOST_WORDS
from serving.deployments.http_handlers import middlewares


def behind_middlewares(app: ASGIApp) -> ASGIApp:
    """The application with what of ours is put around it in a proxy."""
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return app


def proxied(app: ASGIApp) -> TestClient:
    return TestClient(behind_middlewares(app))


def sending(messages: list[Message]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def failing(error: Exception) -> ASGIApp:
    """A proxy whose application fails before it answers."""
    return sending(send_http_response_on_exception(get_http_response_status(error, None, "a request"), False))


def talked(app: ASGIApp, send_error: type[Exception] | None = None) -> list[Message]:
    """What an application sends over a WebSocket whose client goes; nothing where each attempt raises."""
    found: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Message) -> None:
        if send_error is not None:
            raise send_error
        found.append(message)

    async def talk() -> None:
        await behind_middlewares(app)({"type": "websocket", "path": "/ws"}, receive, send)

    asyncio.run(talk())
    return found


SERVES: dict[str, ASGIApp] = {
    "its manager died": failing(ActorDiedError()),
    "no manager is there": failing(DeploymentUnavailableError(DeploymentID("SessionManager"))),
    "it took too long": failing(TimeoutError()),
    "no application is there": sending(convert_object_to_asgi_messages("Path not found.", 404)),
}


@pytest.mark.parametrize("what", SERVES)
def test_a_request_that_no_manager_answers_may_be_made_again(what: str) -> None:
    answer = proxied(SERVES[what]).get("/server.json")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": {"code": "UNAVAILABLE", "reason": "REPLICA_LOST", "message": LOST_WORDS}}


@pytest.mark.parametrize("what", SERVES)
def test_a_websocket_that_no_manager_answers_may_be_opened_again(what: str) -> None:
    start, body = talked(SERVES[what])
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["error"]["reason"] == "REPLICA_LOST"


def test_a_websocket_whose_manager_dies_is_not_answered_a_second_time() -> None:
    died: list[Message] = [*convert_object_to_asgi_messages("it died", 503)]
    accept: Message = {"type": "websocket.accept"}
    assert talked(sending([accept, *died])) == [accept]


@pytest.mark.parametrize(
    "given",
    [
        JSONResponse({"error": "no such page"}, 404),
        PlainTextResponse("a page"),
        PlainTextResponse("no", 400),
        PlainTextResponse("Not Found", 404),
    ],
    ids=["refused in JSON", "a text", "refused in a text", "a page that another application has not"],
)
def test_what_the_application_answers_is_passed_on(given: Any) -> None:
    answer = proxied(given).get("/")
    assert (answer.status_code, answer.content) == (given.status_code, given.body)


def test_serve_says_itself_how_it_is() -> None:
    answer = proxied(sending(convert_object_to_asgi_messages("draining", 503))).get("/-/healthz")
    assert (answer.status_code, answer.text) == (503, "draining")


def test_a_websocket_is_passed_on() -> None:
    messages: list[Message] = [{"type": "websocket.accept"}, {"type": "websocket.send", "text": "a state"}]
    with proxied(sending(messages)).websocket_connect("/ws") as socket:
        assert socket.receive_text() == "a state"


def test_a_websocket_whose_client_has_gone_is_let_go_of_by_its_application() -> None:
    came: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.send", "text": "{}"})
        came.append((await receive())["type"])

    assert talked(app, ClientDisconnected) == []
    assert came == ["websocket.disconnect"]

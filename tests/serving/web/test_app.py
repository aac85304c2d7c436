from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from engines.config.presets import preset
from serving import web
from serving.auth import Tokens
from serving.config import Limits, ServerConfig
from serving.gateway.recording.recording_store import RecordingStore
from serving.gateway.session_service import SessionService
from serving.media.encoder import ChunkEncoder
from serving.replication.register import MemoryRegister
from serving.timeline.formats.reader import MAX_BYTES, MAX_YAML_BYTES
from serving.web.app import web_app
from serving.web.query import TOKEN_PREFIX
from tests.serving.fake_sessions import HEIGHT, WIDTH, paint

TOKEN = {"authorization": "Bearer geheim"}


def client(recordings: Path, tokens: Tokens | None = None, **limits: Any) -> TestClient:
    """The application over real sessions, of which none can be opened: there is no denoiser."""
    config = ServerConfig(recordings=recordings, tokens=tokens or Tokens(), limits=Limits(**limits))
    nobody: Any = None
    return TestClient(web_app(SessionService(nobody, MemoryRegister(), config, preset("pocket"), "here")))


@pytest.fixture
def open_client(tmp_path: Path) -> TestClient:
    return client(tmp_path)


@pytest.fixture
def closed_client(tmp_path: Path) -> TestClient:
    return client(tmp_path, Tokens({"ann": hashlib.sha256(b"geheim").hexdigest()}))


def test_the_page_and_all_it_needs_are_here(open_client: TestClient) -> None:
    page = open_client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in (
        "page.js",
        "longtake.js",
        "player.js",
        "bare.js",
        "bare.css",
        "ticker.js",
        "page.css",
        "icon.svg",
    ):
        part = open_client.get(f"/static/{name}")
        assert (part.status_code, part.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize("place", ["/", "/bare"])
def test_no_other_page_may_frame_a_page_or_change_where_its_parts_come_from_or_see_what_it_sees(
    open_client: TestClient, place: str
) -> None:
    headers = open_client.get(place).headers
    policy = headers["content-security-policy"].split("; ")
    assert {"frame-ancestors 'none'", "base-uri 'none'", "object-src 'none'"} <= set(policy)
    assert {"camera=(self)", "display-capture=(self)"} <= set(headers["permissions-policy"].split(", "))


def test_a_timeline_is_read_for_the_page(open_client: TestClient) -> None:
    text = "version: 1\nseed: 18446744073709551615\ncues:\n  - frame: 0\n    prompt: noon\n"
    read = open_client.post("/timelines?name=film.yaml", content=text).json()
    assert (read["seed"], read["format"]) == ("18446744073709551615", "longtake")
    assert read["cues"] == [{"timestamp": 0, "text": "noon", "prompts": [{"text": "noon", "weight": 1.0}]}]


def test_what_a_session_does_not_take_from_a_file_is_said(open_client: TestClient) -> None:
    file = {"model": "longlive-1.3b", "steps": [1000, 500], "frames": 48, "cues": [{"frame": 0, "prompt": "noon"}]}
    read = open_client.post("/timelines?name=film.json", json=file).json()
    steps = "steps: a server takes the steps of its model, and not the timeline's, 1000, 500"
    assert read["warnings"] == [steps, "length: it ends at frame 48; a session goes on"]
    assert (read["model"], read["frames"]) == ("longlive-1.3b", 48)


@pytest.mark.parametrize("kind", ["none", "video"])
def test_what_a_file_sets_of_pictures_is_for_a_session_that_takes_some(open_client: TestClient, kind: str) -> None:
    settings = {"pipelineId": "streamdiffusionv2", "noiseScale": 0.6}
    file = {"prompts": [{"startTime": 0, "endTime": 3, "text": "noon"}], "settings": settings}
    read = open_client.post("/timelines", params={"name": "film.json", "input": kind}, json=file).json()
    (cue,) = read["cues"]
    assert cue.get("restyling") == {"none": None, "video": {"noise_scale": 0.6}}[kind]
    assert ("noiseScale: only where pictures" in read["warnings"][0]) == (kind == "none")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("film.yaml", b"cues: 3", "must be a list"),
        ("film.exe", b"", "the suffix '.exe' is unknown"),
        ("film.json", b"x" * (MAX_BYTES + 9), "longer than 16 MiB"),
        ("film.yml", b"x" * (MAX_YAML_BYTES + 9), "longer than 256 KiB"),
        ("film.json", b'{"cues": [{"frame": 0, "prompt": "a \\ud83d lake"}]}', "cues[0].prompt"),
    ],
    ids=["no timeline", "no known file", "far too long", "too long for YAML", "half a character"],
)
def test_a_file_that_is_no_timeline_is_refused_in_words(
    open_client: TestClient, name: str, content: bytes, reason: str
) -> None:
    answer = open_client.post("/timelines", params={"name": name}, content=content)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/timelines?input=bad", "input is 'bad'; known: none, video"),
        ("/timelines?input=none&input=video", "the parameter 'input' comes twice"),
        ("/timelines?file=a.json", "the parameter 'file' is unknown; known: name, input"),
        ("/recordings?page_size=many", "page_size is 'many'; it must be a whole number"),
        ("/recordings?page_size=9999999", "page_size is 9999999; it must be at most"),
    ],
)
def test_an_address_that_cannot_be_is_refused_in_words(open_client: TestClient, address: str, reason: str) -> None:
    answer = open_client.request("POST" if "timelines" in address else "GET", address, content=b"cues: []")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(reason)


def test_others_go_on_while_a_long_file_is_read(tmp_path: Path) -> None:
    cues = [{"frame": 12 * number, "prompt": f"a red balloon number {number}"} for number in range(60_000)]

    async def read() -> int:
        transport = httpx2.ASGITransport(client(tmp_path).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as caller:
            sending = asyncio.create_task(caller.post("/timelines?name=a.json", json={"cues": cues}))
            turns = 0
            while not sending.done():
                await asyncio.sleep(0.001)
                turns += 1
        assert len(sending.result().json()["cues"]) == len(cues)
        return turns

    assert asyncio.run(read()) > 20


def posting(folder: Path, *files: AsyncIterator[bytes]) -> list[httpx2.Response]:
    """The answers to timelines that are sent at the same time, each in its pieces."""

    async def post() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(client(folder).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as caller:
            sent = (caller.post("/timelines?name=a.yaml", content=file) for file in files)
            return await asyncio.gather(*sent)

    return asyncio.run(post())


def test_a_timeline_that_does_not_come_in_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"cues:"
        await asyncio.Future()

    monkeypatch.setattr(web.app, "BODY_S", 0.05)
    (answer,) = posting(tmp_path, slow())
    assert answer.status_code == 400
    assert "5 bytes of the file came in 0.05 s" in answer.json()["error"]["message"]


def test_of_more_timelines_than_are_taken_at_once_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = []

    async def file() -> AsyncIterator[bytes]:
        under_way.append(1)
        yield b"cues: [{frame: 0, "
        await asyncio.sleep(0.05)
        yield b"prompt: noon}]"
        most.append(len(under_way))
        under_way.pop()

    most: list[int] = []
    monkeypatch.setattr(web.app, "BODIES_AT_ONCE", 2)
    answers = posting(tmp_path, *(file() for _ in range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert max(most) == 2


def test_who_sends_many_slow_timelines_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    tokens = Tokens({name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")})

    async def slow() -> AsyncIterator[bytes]:
        yield b"cues:"
        await asyncio.Future()

    async def post() -> int:
        transport = httpx2.ASGITransport(client(tmp_path, tokens).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as caller:

            async def sent(name: str, file: AsyncIterator[bytes] | bytes) -> httpx2.Response:
                headers = {"authorization": f"Bearer {name}"}
                return await caller.post("/timelines?name=a.yaml", content=file, headers=headers)

            slowly = [asyncio.create_task(sent("ann", slow())) for _ in range(web.app.BODIES_AT_ONCE)]
            await asyncio.sleep(0.1)
            async with asyncio.timeout(web.app.BODY_S / 2):
                answer = await sent("bob", b"cues: [{frame: 0, prompt: noon}]")
            for task in slowly:
                task.cancel()
            await asyncio.gather(*slowly, return_exceptions=True)
            return answer.status_code

    assert asyncio.run(post()) == 200


def recorded(folder: Path) -> tuple[str, bytes]:
    """The address of a finished recording, and its bytes."""
    writer = RecordingStore(folder).begin("s", HEIGHT, WIDTH, 0)
    writer.append(ChunkEncoder(HEIGHT, WIDTH).encode(0, 0, paint("noon", 0)[None].repeat(9, axis=0)))
    name = writer.finish().name
    return f"/recordings/{name}.mp4", RecordingStore(folder).path(name).read_bytes()


def test_a_recording_is_a_file(tmp_path: Path) -> None:
    address, data = recorded(tmp_path)
    answer = client(tmp_path).get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.headers["content-disposition"] == 'attachment; filename="s-1.mp4"'
    assert answer.content == data


def test_a_recording_can_be_asked_for_without_its_bytes(tmp_path: Path) -> None:
    address, data = recorded(tmp_path)
    answer = client(tmp_path).head(address)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(("wanted", "part"), [("0-9", (0, 10)), ("100-", (100, None)), ("-7", (-7, None))])
def test_a_player_may_ask_for_a_part_of_a_recording(
    tmp_path: Path, wanted: str, part: tuple[int, int | None]
) -> None:
    address, data = recorded(tmp_path)
    answer = client(tmp_path).get(address, headers={"Range": f"bytes={wanted}"})
    assert (answer.status_code, answer.content) == (206, data[slice(*part)])
    start = part[0] % len(data)
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{len(data)}"


def test_a_part_that_is_not_there_is_no_part(tmp_path: Path) -> None:
    address, data = recorded(tmp_path)
    answer = client(tmp_path).get(address, headers={"Range": f"bytes={len(data)}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(data)}")


def test_a_part_of_a_recording_that_is_another_one_now_comes_whole(tmp_path: Path) -> None:
    address, data = recorded(tmp_path)
    mark = client(tmp_path).get(address).headers["etag"]
    for told, status in ((mark, 206), ('"another"', 200)):
        answer = client(tmp_path).get(address, headers={"Range": "bytes=0-9", "If-Range": told})
        assert (answer.status_code, len(answer.content)) == (status, 10 if status == 206 else len(data))


def test_recordings_are_listed_for_the_page_and_deleted(tmp_path: Path) -> None:
    page, names = client(tmp_path), []
    for session in ("one", "two", "three"):
        writer = RecordingStore(tmp_path).begin(session, HEIGHT, WIDTH, 0)
        writer.append(ChunkEncoder(HEIGHT, WIDTH).encode(0, 0, paint("noon", 0)[None].repeat(9, axis=0)))
        names.append(writer.finish().name)
    first = page.get("/recordings", params={"page_size": 2}).json()
    assert [found["name"] for found in first["recordings"]] == names[:2]
    assert page.get(f"/{first['recordings'][0]['url']}").status_code == 200
    rest = page.get("/recordings", params={"page_token": first["next_page_token"]}).json()
    assert [(found["name"], found["frames"]) for found in rest["recordings"]] == [(names[2], 9)]
    assert page.delete(f"/recordings/{names[0]}.mp4").status_code == 204
    assert page.delete(f"/recordings/{names[0]}.mp4").status_code == 404
    assert len(page.get("/recordings").json()["recordings"]) == 2
    assert page.get("/recordings", params={"page_token": "no"}).status_code == 400


@pytest.mark.parametrize("name", ["nothing", "..%2Fnothing", "a%22b"])
def test_a_recording_that_is_not_there_is_not_found(open_client: TestClient, name: str) -> None:
    assert open_client.get(f"/recordings/{name}.mp4").status_code in (400, 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/static/nothing.js", 404), ("DELETE", "/server.json", 405)],
)
def test_what_the_server_has_not_is_refused_as_anything_else_is(
    open_client: TestClient, method: str, path: str, status: int
) -> None:
    answer = open_client.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    code = "NOT_FOUND" if status == 404 else "INVALID_ARGUMENT"
    assert (error["code"], error["reason"]) == (code, "INVALID_REQUEST")
    assert error["message"].startswith(f"{method} {path}: ")


def test_without_a_token_nothing_is_told(closed_client: TestClient) -> None:
    assert closed_client.get("/").status_code == 200
    assert closed_client.post("/timelines", content="").status_code == 401
    assert closed_client.get("/recordings/x.mp4").status_code == 401
    assert closed_client.get("/recordings").status_code == 401
    assert closed_client.delete("/recordings/x.mp4").status_code == 401
    assert closed_client.head("/recordings/x.mp4", headers={"Range": "bytes=0-9"}).status_code == 401
    assert closed_client.get("/recordings/x.mp4", headers=TOKEN).status_code == 404


def test_a_socket_without_a_token_hears_why_it_is_closed(closed_client: TestClient) -> None:
    with closed_client.websocket_connect("/ws") as socket:
        error = socket.receive_json()["data"]
        assert (error["code"], socket.receive()["code"]) == ("UNAUTHENTICATED", 1008)


def test_a_token_comes_with_the_socket(closed_client: TestClient) -> None:
    token = TOKEN_PREFIX + base64.urlsafe_b64encode(b"geheim").decode().rstrip("=")
    with closed_client.websocket_connect("/ws?watch=1", subprotocols=["longtake.v1", token]) as socket:
        assert socket.accepted_subprotocol == "longtake.v1"
        assert socket.receive_json()["data"]["message"].startswith("watch needs a session")


def hear(client: TestClient) -> None:
    """What a socket says that cannot stay."""
    with client.websocket_connect("/ws") as socket:
        socket.receive_json()


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda door: door.get("/server.json"), "a token is missing; send `authorization: Bearer TOKEN`"),
        (lambda door: door.get("/nothing"), "GET /nothing: Not Found"),
        (lambda door: door.post("/timelines", headers={"origin": "http://else.where"}), "http://else.where"),
        (hear, "a token is missing"),
    ],
    ids=["token", "address", "origin", "socket"],
)
def test_a_refused_request_is_one_line_of_the_log(
    closed_client: TestClient, caplog: pytest.LogCaptureFixture, ask: Callable[[TestClient], Any], why: str
) -> None:
    with caplog.at_level(logging.INFO, "serving"):
        ask(closed_client)
    (line,) = [record for record in caplog.records if record.name.startswith("serving")]
    assert (line.levelname, line.getMessage()) == ("INFO", "request refused")
    assert why in vars(line)["why"]


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    often = client(tmp_path, requests_per_second=0.001, requests_at_once=1)
    assert often.get("/recordings/x.mp4").status_code == 404
    refused = often.get("/recordings/x.mp4")
    assert refused.status_code == 429
    assert 800 < int(refused.headers["retry-after"]) <= 1000
    assert refused.json()["error"]["reason"] == "TOO_MANY_REQUESTS"
    with often.websocket_connect("/ws") as socket:
        error = socket.receive_json()["data"]
        assert (error["reason"], socket.receive()["code"]) == ("TOO_MANY_REQUESTS", 1013)
        assert 800 < error["retry_after_s"] < 1000


def test_the_page_can_ask_what_is_generated_here(open_client: TestClient, closed_client: TestClient) -> None:
    assert open_client.get("/server.json").json() == {
        "model": "pocket", "sizes": [{"height": 96, "width": 160}], "other_sizes": True, "max_pixels": 921600,
        "max_fps": 60, "default_fps": 16, "inputs": ["none", "video"], "video_size": {"height": 96, "width": 160},
    }  # fmt: skip
    assert closed_client.get("/server.json").status_code == 401
    assert closed_client.get("/server.json", headers=TOKEN).json()["model"] == "pocket"


def test_a_request_that_fails_as_nobody_foresaw_is_answered_in_the_form_of_all_errors(
    open_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(SessionService, "describe_server", fail)
    answer = TestClient(open_client.app, raise_server_exceptions=False).get("/server.json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INTERNAL")

"""The client, against a server that paints its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from serving.client.aio import AsyncClient
from serving.client.blocking import Client
from serving.client.event_stream import refusal_of
from serving.errors import (
    CommandIdReused,
    FrameOutOfRange,
    InsecureToken,
    InvalidRequest,
    NotAllowed,
    ReplicaLost,
    SessionNotFound,
    SlotsFull,
    WrongState,
)
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.status import FULL_RETRY_S
from serving.timeline.cue import Blend, Cue
from tests.serving.fake_sessions import WIDTH, FakeServer, serving

Work = Callable[[AsyncClient, FakeServer], Awaitable[None]]

BALLOON = Cue(0, Blend.of("a red balloon"))


def with_client(work: Work, server: FakeServer | None = None) -> None:
    async def run() -> None:
        fake = server or FakeServer()
        async with serving(fake) as address, AsyncClient(address, patience_s=5) as client:
            async with asyncio.timeout(30):
                await work(client, fake)

    asyncio.run(run())


def test_a_session_is_opened_with_its_cues_found_listed_and_ended() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(seed=5, fps=0, lease_s=90, cues=[BALLOON])
        assert session.state == pb.SESSION_STATE_READY
        assert (session.options.seed, session.options.fps) == (5, 0)
        assert session.options.lease.ToTimedelta().total_seconds() == 90
        assert (await client.get(session.id)).pending[0].prompts[0].text == "a red balloon"
        assert [found.id for found in await client.list()] == [session.id]
        await client.delete(session.id)
        with pytest.raises(SessionNotFound, match=session.id):
            await client.get(session.id)

    with_client(work)


def test_a_client_can_ask_what_the_server_generates() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        found = await client.describe_server()
        assert (found.model, found.sizes[0].width) == ("painted", WIDTH)

    with_client(work)


def test_refusals_are_the_errors_that_the_server_means() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create()
        with pytest.raises(WrongState, match="CREATED"):
            await client.start(session.id)
        with pytest.raises(InvalidRequest, match="no cue is at frame 9"):
            await client.remove(session.id, 9)
        with pytest.raises(SlotsFull, match="all 1 sessions") as refused:
            await client.create()
        assert refused.value.retry_after_s == FULL_RETRY_S

    with_client(work, FakeServer(slots=1))


def test_cues_are_scheduled_moved_and_removed() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(cues=[BALLOON])
        receipt = await client.schedule(session.id, "a blue fish", 12)
        assert (receipt.cue_frame, receipt.frame) == (12, 21)
        assert (await client.move(session.id, 12, 40)).frame == 45
        await client.schedule(session.id, "a bird", 50)
        await client.remove(session.id, 50)
        assert [cue.frame for cue in (await client.get(session.id)).pending] == [0, 40]

    with_client(work)


def test_a_cue_in_the_past_names_the_earliest_frame() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(cues=[BALLOON])
        await client.start(session.id)
        while (await client.get(session.id)).next_frame == 0:
            await asyncio.sleep(0.01)
        with pytest.raises(FrameOutOfRange, match="possible one is 9"):
            await client.schedule(session.id, "a blue fish", 0)

    with_client(work)


@pytest.mark.parametrize("fault", ["requests_lost", "answers_lost", "too_often"])
def test_what_is_asked_for_is_done_once_though_the_request_or_its_answer_is_lost(fault: str) -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        async def despite(request: Awaitable[Any]) -> Any:
            setattr(server.faults, fault, 2)
            answer = await request
            assert getattr(server.faults, fault) == 0
            return answer

        session = await despite(client.create(fps=0, cues=[BALLOON]))
        assert list(server.sessions) == [session.id]
        assert (await despite(client.schedule(session.id, "a bird"))).cue_frame == 0
        assert (await despite(client.schedule(session.id, "a blue fish", 30))).cue_frame == 30
        await despite(client.move(session.id, 30, 40))
        await despite(client.remove(session.id, 40))
        await despite(client.start(session.id))
        await despite(client.pause(session.id))
        await despite(client.resume(session.id))
        await despite(client.reset(session.id))
        await despite(client.start_recording(session.id))
        await despite(client.stop_recording(session.id))
        done = ["schedule_prompt"] * 2 + ["move_prompt", "remove_prompt", "start", "pause", "resume", "reset"]
        assert server.session(session.id).done == done

    with_client(work)


def test_a_session_whose_end_was_not_answered_is_ended() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create()
        server.faults.ends_lost = 1
        await client.delete(session.id)
        assert (server.sessions, server.faults.ends_lost) == ({}, 0)
        with pytest.raises(SessionNotFound):
            await client.delete(session.id)

    with_client(work)


def test_a_server_that_stays_unavailable_is_given_up() -> None:
    async def run() -> None:
        fake = FakeServer()
        fake.faults.requests_lost = 1000
        async with serving(fake) as address, AsyncClient(address, patience_s=0.3) as client:
            with pytest.raises(ReplicaLost, match="it died over the request"):
                async with asyncio.timeout(60):
                    await client.create()

    asyncio.run(run())


def test_ids_that_were_used_for_something_else_are_refused() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(cues=[BALLOON])
        request = pb.RemovePromptRequest(session_id=session.id, frame=0, client_id="ann", command_id="1")
        await client.stub.RemovePrompt(request)
        again = await client.stub.RemovePrompt(request)
        assert again.repeated
        request.frame = 9
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.RemovePrompt(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert type(refusal_of(refused.value)) is CommandIdReused

    with_client(work)


def test_a_long_list_comes_in_pages() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        sessions = [(await client.create()).id for _ in range(3)]
        first = await client.stub.ListSessions(pb.ListSessionsRequest(page_size=2))
        assert [found.id for found in first.sessions] == sessions[:2]
        server.faults.page_size = 2
        assert [found.id for found in await client.list()] == sessions

    with_client(work)


def test_a_recording_is_read_in_pieces() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create()
        recording = await client.start_recording(session.id)
        finished = await client.stop_recording(session.id)
        pieces = [piece async for piece in client.read_recording(recording.name)]
        assert len(pieces) == 2
        assert sum(map(len, pieces)) == finished.bytes

    with_client(work)


def test_recordings_are_listed_page_by_page_and_deleted_once() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        names = []
        for _ in range(3):
            session = await client.create()
            await client.start_recording(session.id)
            names.append((await client.stop_recording(session.id)).name)
        server.faults.page_size = 2
        assert [found.name async for found in client.recordings()] == names
        server.faults.ends_lost = 1
        await client.delete_recording(names[0])
        assert [found.name async for found in client.recordings()] == names[1:]
        with pytest.raises(SessionNotFound, match="there is no recording"):
            await client.delete_recording(names[0])

    with_client(work)


def test_a_token_goes_with_every_request() -> None:
    async def run() -> None:
        async with serving(FakeServer(token="secret")) as address:
            async with AsyncClient(address, token="secret") as client:
                assert await client.list() == []
            async with AsyncClient(address) as client:
                with pytest.raises(NotAllowed, match="token"):
                    await client.list()

    asyncio.run(run())


def test_a_server_that_is_not_there_is_named() -> None:
    async def run() -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(ReplicaLost, match=r"127\.0\.0\.1:1 does not answer"):
                await client.list()

    asyncio.run(run())


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_token_goes_to_another_host_in_the_clear_only_where_that_is_said(
    kind: type[AsyncClient | Client],
) -> None:
    async def run() -> None:
        with pytest.raises(InsecureToken, match=r"video\.example:9000 in the clear.*--tls.*--insecure"):
            kind("video.example:9000", token="geheim")
        for said in ({"tls": True}, {"insecure": True}):
            closed = kind("video.example:9000", token="geheim", **said).close()
            if closed is not None:
                await closed

    asyncio.run(run())


HALF = "a\ud83d"
LARGE = 1 << 63

UNCARRIED: dict[str, Callable[[AsyncClient], Awaitable[Any]]] = {
    "session_id contains": lambda client: client.get(HALF),
    "session_id contains '": lambda client: client.delete(HALF),
    "session_id contains '\\": lambda client: client.applied_cues(HALF).asend(None),
    "name contains": lambda client: client.delete_recording(HALF),
    "name contains '": lambda client: client.read_recording(HALF).asend(None),
    "model contains": lambda client: client.create(model=HALF),
    "fit is 'zoom'; known: fill, fit, stretch": lambda client: client.create(fit=cast(Any, "zoom")),
    "height is 2147483648, which": lambda client: client.create(height=1 << 31),
    "seed is -1, which no message can carry; it has 0": lambda client: client.create(seed=-1),
    f"frame is {LARGE}, which": lambda client: client.remove("one", LARGE),
    f"to_frame is {LARGE}, which": lambda client: client.move("one", 0, LARGE),
    "frame is a number of more than 24 digits, which": lambda client: client.pause("one", 1 << 200),
    f"frame is {LARGE}, which no": lambda client: client.fork("one", LARGE),
    f"from_frame is {LARGE}, which": lambda client: client.watch("one", LARGE).asend(None),
}


@pytest.mark.parametrize("words", UNCARRIED)
def test_what_no_message_can_carry_is_refused_by_its_name(words: str) -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await UNCARRIED[words](client)
        assert str(caught.value).startswith(words)

    with_client(work)


@pytest.mark.parametrize("token", ["geheim\n", "gehëim", HALF])
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_token_that_no_metadata_can_carry_is_refused_and_not_shown(
    kind: type[AsyncClient | Client], token: str
) -> None:
    async def run() -> None:
        with pytest.raises(InvalidRequest, match="not printable ASCII") as caught:
            kind("localhost:1", token=token)
        assert token not in str(caught.value)

    asyncio.run(run())


def test_an_address_with_half_a_character_is_refused() -> None:
    async def run() -> None:
        with pytest.raises(InvalidRequest, match="server contains"):
            AsyncClient(HALF)

    asyncio.run(run())

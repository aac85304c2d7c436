"""The client for programs without an event loop, against a server that paints its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from serving.client.blocking import Client, LoopThread
from serving.errors import SessionNotFound, WrongState
from serving.timeline.cue import Blend, Cue
from tests.serving.fake_sessions import FakeServer, serving

BALLOON = Cue(0, Blend.of("a red balloon"))


async def enter(context: AbstractAsyncContextManager[str]) -> str:
    return await context.__aenter__()


async def leave(context: AbstractAsyncContextManager[str]) -> None:
    await context.__aexit__(None, None, None)


@pytest.fixture
def client() -> Iterator[Client]:
    thread, server = LoopThread(), serving(FakeServer())
    with Client(thread.run(enter(server)), patience_s=5) as client:
        yield client
    thread.run(leave(server))
    thread.stop()


def test_the_server_says_what_it_generates(client: Client) -> None:
    assert client.describe_server().model == "painted"


def test_a_session_is_opened_found_and_ended(client: Client) -> None:
    session = client.create(seed=5, fps=0, cues=[BALLOON])
    assert client.get(session.id).options.seed == 5
    assert [found.id for found in client.list()] == [session.id]
    client.delete(session.id)
    with pytest.raises(SessionNotFound, match=session.id):
        client.get(session.id)


def test_a_session_is_steered_while_its_events_are_read(client: Client) -> None:
    session = client.create(fps=0, cues=[BALLOON])
    with client.control(session, from_frame=0) as steered:
        steered.start()
        frames, applied = [], []
        for event in steered:
            frames += [unit.frame for unit in event.chunk.units]
            applied += [event.applied.cue.prompts[0].text] if event.HasField("applied") else []
            if len(frames) == 21:
                steered.schedule("a blue sailboat")
            if len(applied) == 2:
                break
    assert applied == ["a red balloon", "a blue sailboat"]
    assert frames == list(range(len(frames)))


def test_what_is_refused_is_raised(client: Client) -> None:
    session = client.create()
    with client.control(session) as steered, pytest.raises(WrongState, match="CREATED"):
        steered.start()


def test_a_watch_that_is_left_early_leaves_the_client_usable(client: Client) -> None:
    session = client.create(fps=0, cues=[BALLOON])
    events = client.watch(session.id, 0)
    assert next(events).state.id == session.id
    events.close()  # type: ignore[attr-defined]
    assert client.get(session.id).id == session.id


def test_the_cues_that_have_applied_come_page_by_page() -> None:
    thread, server = LoopThread(), FakeServer()
    server.faults.cue_page_size = 2
    running = serving(server)
    with Client(thread.run(enter(running)), patience_s=5) as client:
        session = client.create(
            fps=0, cues=[Cue(12 * number, Blend.of(f"prompt {number}")) for number in range(5)]
        )
        with client.control(session, from_frame=0) as steered:
            steered.start()
            for event in steered:
                if event.progress.current_start_frame >= 69:
                    break
        texts = [applied.cue.prompts[0].text for applied in client.applied_cues(session.id)]
        assert texts == [f"prompt {number}" for number in range(5)]
    thread.run(leave(running))
    thread.stop()

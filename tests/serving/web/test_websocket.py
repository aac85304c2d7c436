from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi.testclient import TestClient

from serving.auth import Caller
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.web.app import web_app


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

    async def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> AsyncIterator[pb.Event]:
        async for command in commands:
            if command.HasField("attach"):
                yield pb.Event(state=standing(pb.SESSION_STATE_READY))
                continue
            kind, stage = pb.COMMAND_KIND_SCHEDULE_PROMPT, pb.RECEIPT_STAGE_ACCEPTED
            yield pb.Event(receipt=pb.Receipt(command_id=command.id, command=kind, stage=stage))
            await self.asked.wait()
            yield pb.Event(state=standing(pb.SESSION_STATE_RUNNING))
            self.started.set()

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        if self.started.is_set():
            return standing(pb.SESSION_STATE_RUNNING, pb.Cue(frame=9))
        self.asked.set()
        await self.started.wait()
        return standing(pb.SESSION_STATE_READY)


def test_a_state_that_was_overtaken_is_asked_for_again() -> None:
    face: Any = Overtaken()
    with TestClient(web_app(face)).websocket_connect("/ws") as socket:
        socket.send_json({"type": "schedule_prompt", "data": {"new_prompt": "night", "timestamp": 9}})
        heard: list[dict[str, Any]] = []
        while len(heard) < 3:
            message = socket.receive_json()
            heard += [message["data"]] if message["type"] == "state" else []
    assert [state["state"] for state in heard] == ["ready", "running", "running"]
    assert [len(state["pending"]) for state in heard] == [0, 0, 1]

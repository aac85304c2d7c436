"""Recordings of sessions, by caller: begun, finished and read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from serving.errors import ReplicaLost, SessionNotFound, WrongState
from serving.gateway.event_relay import EventRelay
from serving.gateway.recorder import Recorder
from serving.gateway.recording_store import RecordingStore
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Role

FINISH_S = 5.0
"""How long a recording may take to be finished."""


class Recordings:
    """A folder of recordings for each caller; `beside` runs what writes them."""

    def __init__(
        self,
        relay: EventRelay,
        folder: Path,
        callers: Iterable[str],
        max_frames: int,
        beside: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._relay = relay
        self._stores = {caller: RecordingStore(folder / caller) for caller in callers}
        self._max_frames = max_frames
        self._beside = beside

    async def start(self, session: pb.Session, caller: str) -> pb.Recording:
        """Begin to write a session's chunks, with the next one. Raises WrongState if that is done already."""
        if session.recording:
            raise WrongState(f"the session is being recorded as {session.recording}; stop that first")
        recorder = Recorder(self._stores[caller], session, self._max_frames)
        await self._relay.ask(session.id, "set_recording", recorder.name)
        self._beside(self._record(session, recorder))
        return recorder.facts()

    async def stop(self, session: pb.Session, caller: str) -> pb.Recording:
        """Finish the file. Raises WrongState if there is none."""
        if not session.recording:
            raise WrongState("the session is not being recorded; start a recording first")
        await self._relay.ask(session.id, "set_recording", "")
        until = asyncio.get_running_loop().time() + FINISH_S
        while asyncio.get_running_loop().time() < until:
            try:
                found = await asyncio.to_thread(self._stores[caller].find, session.recording)
            except WrongState:
                await asyncio.sleep(0.05)
            except SessionNotFound:
                return pb.Recording(name=session.recording, session_id=session.id)
            else:
                return pb.Recording(
                    name=found.name, session_id=found.session_id, first_frame=found.first_frame,
                    frames=found.frames, bytes=found.nbytes, finished=True,
                )  # fmt: skip
        raise ReplicaLost(f"the recording {session.recording} is not finished after {FINISH_S:g} s; ask again")

    async def read(self, name: str, caller: str) -> AsyncIterator[bytes]:
        """The bytes of a finished recording, piece by piece."""
        for piece in self._stores[caller].read(name):
            yield piece

    def file(self, name: str, caller: str) -> Path:
        """Where a finished recording lies."""
        return self._stores[caller].path(name)

    async def _record(self, session: pb.Session, recorder: Recorder) -> None:
        async with aclosing(self._relay.events(session.id, Role.RECORDER, session.current_start_frame)) as events:
            await recorder.run(events)

"""Recordings of sessions, by caller: begun, finished, listed, read and deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.config import Limits
from serving.errors import FilmError, LimitReached, ReplicaLost, SessionNotFound, WrongState
from serving.gateway.failover.event_relay import EventRelay
from serving.gateway.recording.recorder import Recorder, write_recording
from serving.gateway.recording.recording_store import Finished, RecordingStore, callers_with_parts
from serving.gateway.recording.recording_writer import RecordingWriter, refusing
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.paging import Place, cut

logger = logging.getLogger(__name__)

FINISH_S = 10.0
"""How long a recording may take to be finished."""

LOOK_EVERY_S = 2.0
"""How often recordings are looked for whose writer is gone."""

LISTED_AT_ONCE = 2
"""Lists that are read from the disk at a time; others wait, and take nobody else's thread."""


class Recordings:
    """A folder of recordings for each caller, at first of `callers`; `beside` runs what writes them.

    `limits` bounds the frames of one recording, and the bytes of a caller's.
    """

    def __init__(
        self,
        relay: EventRelay,
        folder: Path,
        callers: Iterable[str],
        limits: Limits,
        beside: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._relay = relay
        self._folder = folder
        self._stores = {caller: RecordingStore(folder / caller) for caller in callers}
        self._limits = limits
        self._listing = ThreadPoolExecutor(LISTED_AT_ONCE, "recordings")
        self._beside = beside
        self._looks = False

    def look_after(self) -> None:
        """Begin to go on with the recordings whose writer is gone. To begin again does nothing."""
        if not self._looks:
            self._looks = True
            self._beside(self._look())

    def close(self) -> None:
        """Read no more lists."""
        self._listing.shutdown(wait=False, cancel_futures=True)

    async def start(self, session: pb.Session, caller: str, asked_by: str) -> pb.Recording:
        """Begin to write a session's chunks, with the next one.

        Raises WrongState if that is done already, and LimitReached where the caller's take all the bytes they may.
        `asked_by` names the request: one that is made again has the same answer. Nothing is left of one that is
        refused.
        """
        options = session.options
        store = self._store(caller)
        await asyncio.to_thread(store.require_room, self._limits.recording_bytes)
        writer = await asyncio.to_thread(
            store.begin,
            session.id, options.height, options.width, session.current_start_frame, session.take, asked_by,
        )  # fmt: skip
        try:
            name: str = await self._relay.ask(session.id, "begin_recording", writer.name, asked_by)
        except (ReplicaLost, asyncio.CancelledError):
            # It may have been granted: whoever looks after what is left behind finds out.
            writer.release()
            raise
        except BaseException:
            writer.discard()
            raise
        if name != writer.name:
            writer.discard()
            first_frame = await asyncio.to_thread(store.first_frame, name)
            return pb.Recording(name=name, session_id=session.id, first_frame=first_frame)
        self._record(writer)
        return write_recording(writer.recording)

    async def stop(self, session: pb.Session, caller: str, asked_by: str) -> pb.Recording:
        """Finish the file. Raises WrongState if there is none, and LimitReached where it could not be written."""
        store = self._store(caller)
        is_empty = await asyncio.to_thread(_is_empty, store, session)
        name = await self._relay.ask(session.id, "stop_recording", asked_by)
        until = asyncio.get_running_loop().time() + FINISH_S
        while asyncio.get_running_loop().time() < until:
            try:
                return write_recording(await asyncio.to_thread(store.find, name))
            except WrongState:
                await asyncio.sleep(0.05)
            except SessionNotFound:
                if is_empty:
                    return pb.Recording(name=name, session_id=session.id)
                raise LimitReached(f"the recording {name} has gone from this server's disk") from None
        raise ReplicaLost(f"the recording {name} is not finished after {FINISH_S:g} s; ask again")

    async def page(self, request: pb.ListRecordingsRequest, caller: str) -> pb.ListRecordingsResponse:
        """A page of those that can be read, the oldest first. Raises InvalidRequest for a token that is none."""
        return await asyncio.get_running_loop().run_in_executor(
            self._listing, _page, self._store(caller), request.page_size, request.page_token
        )

    async def read(self, name: str, caller: str) -> AsyncIterator[bytes]:
        """The bytes of a finished recording, piece by piece."""
        pieces = await asyncio.to_thread(self._store(caller).read, name)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece

    def file(self, name: str, caller: str) -> Path:
        """Where a finished recording lies."""
        return self._store(caller).path(name)

    async def delete(self, name: str, caller: str) -> None:
        """Remove a finished recording."""
        await asyncio.to_thread(self._store(caller).delete, name)

    def _store(self, caller: str) -> RecordingStore:
        if (store := self._stores.get(caller)) is None:
            folder = self._folder / caller
            with refusing(folder):
                store = self._stores[caller] = RecordingStore(folder)
        return store

    def _record(self, writer: RecordingWriter) -> None:
        self._beside(Recorder(self._relay, writer, self._limits.recording_frames).run())

    async def _look(self) -> None:
        while True:
            try:
                for writer in await asyncio.to_thread(self._left_behind):
                    logger.info("recording taken over", extra={"recording": writer.name})
                    self._record(writer)
            except Exception:
                logger.exception("recordings not looked after")
            await asyncio.sleep(LOOK_EVERY_S)

    def _left_behind(self) -> list[RecordingWriter]:
        """What nobody writes any more."""
        callers = {*self._stores, *callers_with_parts(self._folder)}
        return [writer for caller in callers for writer in self._store(caller).left_behind()]


def _is_empty(store: RecordingStore, session: pb.Session) -> bool:
    """Whether nothing was made since the recording of a session began, if one is being written."""
    if not session.recording:
        return True
    try:
        return session.current_start_frame <= store.first_frame(session.recording)
    except SessionNotFound:
        return False


def _place_of(finished: Finished) -> Place:
    return finished.finished_ns, finished.name


def _page(store: RecordingStore, size: int, token: str) -> pb.ListRecordingsResponse:
    page, next_token = cut(store.finished(), _place_of, size, token)
    found = _described(store, [one.name for one in page])
    return pb.ListRecordingsResponse(recordings=found, next_page_token=next_token)


def _described(store: RecordingStore, names: Iterable[str]) -> list[pb.Recording]:
    """Those that are there, and ours."""
    found = []
    for name in names:
        with suppress(SessionNotFound, FilmError):
            found.append(write_recording(store.find(name)))
    return found

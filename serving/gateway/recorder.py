"""A recorder: follows a session and writes its chunks to a file, wherever the session lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from serving.errors import LimitReached, ServingError
from serving.gateway.recording_store import RecordingStore
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.chunks import read_chunk

logger = logging.getLogger(__name__)


class Recorder:
    """Writes one recording, from the session's next chunk on, until the session has another name for it."""

    def __init__(self, recordings: RecordingStore, session: pb.Session, most_frames: int) -> None:
        size = session.options
        self._take, self._most = session.take, most_frames
        self._writer = recordings.begin(session.id, size.height, size.width, session.current_start_frame)

    @property
    def name(self) -> str:
        """Of the recording."""
        return self._writer.recording.name

    def facts(self) -> pb.Recording:
        """How far it is."""
        begun = self._writer.recording
        return pb.Recording(
            name=begun.name, session_id=begun.session_id, first_frame=begun.first_frame, frames=begun.frames
        )

    async def run(self, events: AsyncIterator[pb.Event]) -> None:
        """Write what comes; finish the file when the recording is stopped, the session ends or is reset."""
        try:
            async for event in events:
                if event.take != self._take:
                    break
                if event.HasField("state") and event.state.recording != self.name:
                    break
                if event.HasField("gap"):
                    raise LimitReached("the disk is too slow: chunks are missing from here on")
                if event.HasField("chunk"):
                    await asyncio.to_thread(self._writer.append, read_chunk(event.chunk))
                if self._writer.recording.frames >= self._most:
                    break
        except ServingError as error:
            logger.warning("recording ends", extra={"recording": self.name, "why": str(error)})
        await asyncio.to_thread(self._writer.finish)

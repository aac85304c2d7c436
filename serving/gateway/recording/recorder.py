"""A recorder: follows a session and writes its chunks to a file, wherever the session lives."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from enum import Enum

from serving.errors import (
    FilmError,
    FrameOutOfRange,
    LimitReached,
    ReplicaLost,
    ServingError,
    SessionFailed,
    SessionLost,
    SessionMoved,
    SessionNotFound,
)
from serving.gateway.failover.event_relay import EventRelay
from serving.gateway.recording.recording_writer import Recording, RecordingWriter
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import read_chunk
from serving.protocol.status import write_error
from serving.replication.messages import Role

logger = logging.getLogger(__name__)


class _Heard(Enum):
    """What an event means for a recording."""

    GO_ON = "go on"
    HOLE = "chunks are missing before this one"
    OVER = "it is stopped, or its session has ended or was reset"


class Recorder:
    """Writes one recording, from the frame on that its file lacks, until the session has another name for it.

    It is told nothing but the file, so that any manager can go on with one whose writer is gone.
    """

    def __init__(self, relay: EventRelay, writer: RecordingWriter, most_frames: int) -> None:
        self._relay, self._writer, self._most = relay, writer, most_frames

    async def run(self) -> None:
        """Write what comes; finish the file when the recording is stopped, the session ends or is reset.

        One that ends before says why to the session. Where nobody knows what has become of that, or this process
        ends, the file is left as it is, to be gone on with.
        """
        try:
            failure = await self._ending()
            ended, failure = await self._finished(failure)
            await self._tell(ended, failure)
        except ReplicaLost as lost:
            logger.info("recording left for later", extra={"recording": self._writer.name, "why": str(lost)})
        finally:
            self._writer.release()

    async def _ending(self) -> ServingError | None:
        """Follow the session to the recording's end; gives what ended it, if something did that should not."""
        try:
            while await self._is_recorded() and await self._follow():
                pass
        except (SessionNotFound, SessionLost, SessionFailed, SessionMoved):
            return None
        except FrameOutOfRange as gone:
            return LimitReached(
                f"chunks from frame {self._writer.next_frame} on came too late to be recorded: {gone}"
            )
        except (LimitReached, FilmError) as error:
            return error
        except ReplicaLost:
            raise
        except Exception as error:
            logger.exception("a recorder failed", extra={"recording": self._writer.name})
            return SessionFailed.of("recording", error)
        return None

    async def _is_recorded(self) -> bool:
        """Whether the recording goes on, as far as its session knows."""
        session = pb.Session.FromString(await self._relay.ask(self._writer.facts.session_id, "describe"))
        return session.take == self._writer.facts.take and session.recording == self._writer.name

    async def _follow(self) -> bool:
        """Write a stream of chunks; True if it is to be opened again, from the first frame that is missing."""
        facts, writer = self._writer.facts, self._writer
        events = self._relay.events(facts.session_id, Role.RECORDER, writer.next_frame)
        async with aclosing(events):
            async for sent in events:
                event = sent.event
                heard = self._heard(event)
                if heard is not _Heard.GO_ON:
                    return heard is _Heard.HOLE
                if event.HasField("chunk"):
                    await asyncio.to_thread(writer.append, read_chunk(event.chunk))
                    self._require_room()
        return False

    def _heard(self, event: pb.Event) -> _Heard:
        writer = self._writer
        if event.take != writer.facts.take:
            return _Heard.OVER
        if event.HasField("state") and event.state.recording != writer.name:
            return _Heard.OVER
        skips = event.HasField("chunk") and event.chunk.first_frame > writer.next_frame
        return _Heard.HOLE if skips or event.HasField("gap") else _Heard.GO_ON

    def _require_room(self) -> None:
        if (frames := self._writer.recording.frames) >= self._most:
            raise LimitReached(f"{frames} frames are recorded, and at most {self._most} go into one recording")

    async def _finished(self, failure: ServingError | None) -> tuple[Recording, ServingError | None]:
        try:
            return await asyncio.to_thread(self._writer.finish), failure
        except (LimitReached, FilmError) as error:
            return self._writer.recording, failure or error

    async def _tell(self, ended: Recording, failure: ServingError | None) -> None:
        """Say to the session, if it is there, that nothing more is written of it."""
        said = write_recording(ended)
        if failure is not None:
            said.error.CopyFrom(write_error(LimitReached(_sentence(ended, failure))))
            extra = {"recording": ended.name, "frames": ended.frames, "why": str(failure)}
            logger.warning("recording ended", extra=extra)
        with suppress(SessionNotFound, SessionLost, SessionMoved):
            await self._relay.ask(ended.session_id, "end_recording", said.SerializeToString())


def _sentence(ended: Recording, failure: ServingError) -> str:
    kept = f"its {ended.frames} frames can be read" if ended.finished else "nothing is left of it"
    return f"the recording {ended.name} has ended, and {kept}: {failure}"


def write_recording(recording: Recording) -> pb.Recording:
    """The `Recording` message; it has a time of finishing once the file can be read."""
    written = pb.Recording(
        name=recording.name, session_id=recording.session_id, first_frame=recording.first_frame,
        frames=recording.frames, bytes=recording.nbytes, finished=recording.finished,
    )  # fmt: skip
    if recording.finished:
        written.finish_time.FromNanoseconds(round(recording.finished_at * 1e9))
    return written

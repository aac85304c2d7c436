"""Chunks as segments of MP4, made once for all who watch."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakValueDictionary

from cachetools import LRUCache

from serving.media.fmp4 import Fragments
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import read_chunk

KEPT_BYTES = 8 << 20
"""Of a session's segments and the events they were made of: its viewers want the same few at a time."""


class Segment(NamedTuple):
    """A chunk's frames, and how to decode them."""

    codec: str
    init: bytes
    data: bytes
    first_frame: int
    frames: int


_Key = tuple[int, int, int]
_Kept = tuple[pb.Event, Segment]


class SegmentCache:
    """The segments of every session that somebody watches; they go with the last who does."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._sessions: WeakValueDictionary[str, SessionSegments] = WeakValueDictionary()

    def session(self, session_id: str) -> SessionSegments:
        """Those of a session, for as long as it is watched."""
        if (found := self._sessions.get(session_id)) is None:
            found = self._sessions[session_id] = SessionSegments(self._kept_bytes)
        return found


class SessionSegments:
    """Segments by what they are made of: chunk events that viewers share are the same object."""

    def __init__(self, kept_bytes: int) -> None:
        self._segments: LRUCache[_Key, _Kept] = LRUCache(kept_bytes, getsizeof=_nbytes)

    def of(self, session: pb.Session, event: pb.Event) -> Segment:
        """The segment of a chunk's event. Raises FilmError if the chunk does not begin with parameter sets."""
        key = event.take, event.chunk.first_frame, len(event.chunk.units)
        known = self._segments.get(key)
        if known is not None and (known[0] is event or known[0].chunk == event.chunk):
            return known[1]
        chunk = read_chunk(event.chunk)
        fragments = Fragments(chunk, session.options.height, session.options.width)
        segment = Segment(
            fragments.codec, fragments.init, fragments.segment(chunk), chunk.first_frame, len(chunk.units)
        )
        if _nbytes(kept := (event, segment)) <= self._segments.maxsize:
            self._segments[key] = kept
        return segment


def _nbytes(kept: _Kept) -> int:
    """The event has the same frames in it as the segment."""
    return 2 * len(kept[1].data)

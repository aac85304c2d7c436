"""Chunks as segments of MP4, made once for all who watch."""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache

from serving.media.fmp4 import Fragments
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.chunks import read_chunk

REMEMBERED = 256
"""Chunks whose segments are kept: viewers of a session want the same few at a time."""


class Segment(NamedTuple):
    """A chunk's frames, and how to decode them."""

    codec: str
    init: bytes
    data: bytes
    first_frame: int
    frames: int


class SegmentCache:
    """Segments by what they are made of: chunk events that viewers share are the same object."""

    def __init__(self) -> None:
        self._segments: LRUCache[tuple[str, int, int, int], tuple[pb.Event, Segment]] = LRUCache(REMEMBERED)

    def of(self, session: pb.Session, event: pb.Event) -> Segment:
        """The segment of a chunk's event. Raises FilmError if the chunk does not begin with parameter sets."""
        key = session.id, event.take, event.chunk.first_frame, len(event.chunk.units)
        known = self._segments.get(key)
        if known is not None and (known[0] is event or known[0].chunk == event.chunk):
            return known[1]
        chunk = read_chunk(event.chunk)
        fragments = Fragments(chunk, session.options.height, session.options.width)
        segment = Segment(
            fragments.codec, fragments.init, fragments.segment(chunk), chunk.first_frame, len(chunk.units)
        )
        self._segments[key] = event, segment
        return segment

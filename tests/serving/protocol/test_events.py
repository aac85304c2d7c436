from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from serving.media.chunk import ChunkSpan
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.protocol.stream_cursor import RelayCursor

CHUNK = pb.Event(take=2, seq=7, chunk=pb.Chunk(first_frame=9, units=[pb.AccessUnit(data=b"x")] * 12))
SPAN = ChunkSpan(take=2, first_frame=9, frames=12)


@pytest.mark.parametrize("sent", [SerializedEvent.of(CHUNK), SerializedEvent.read(CHUNK.SerializeToString())])
def test_an_event_knows_its_bytes_and_where_its_chunk_is(sent: SerializedEvent) -> None:
    assert (sent.event, sent.SerializeToString(), sent.span) == (CHUNK, CHUNK.SerializeToString(), SPAN)


def test_what_is_no_chunk_has_no_span() -> None:
    assert SerializedEvent.of(pb.Event(progress=pb.Progress())).span is None


def test_a_chunk_is_not_read_to_be_sent_on_and_once_by_all_who_ask_for_it() -> None:
    unreadable = SerializedEvent(b"no message", SPAN)
    cursor = RelayCursor(0)
    assert [cursor.accept(unreadable) for _ in range(2)] == [True, False]
    assert unreadable.SerializeToString() == b"no message"
    with pytest.raises(DecodeError):
        _ = unreadable.event
    readable = SerializedEvent(CHUNK.SerializeToString(), SPAN)
    assert readable.event is readable.event

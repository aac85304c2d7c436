from __future__ import annotations

from serving.deployments.serialized_chunks import SerializedChunks, SerializedEvent
from serving.pb.longtake.v1 import sessions_pb2 as pb


def chunk(block: int) -> pb.Event:
    return pb.Event(seq=block, chunk=pb.Chunk(block=block, units=[pb.AccessUnit(data=b"picture")]))


def test_a_chunk_is_serialized_once_for_all_its_viewers() -> None:
    chunks, event = SerializedChunks(), chunk(1)
    one, other = chunks.of(event), chunks.of(event)
    assert isinstance(one, SerializedEvent)
    assert one is other
    assert one.SerializeToString() == event.SerializeToString()


def test_chunks_that_are_equal_and_not_the_same_are_kept_apart() -> None:
    chunks = SerializedChunks(kept=2)
    for block in range(200):
        assert pb.Event.FromString(chunks.of(chunk(block)).SerializeToString()).chunk.block == block


def test_no_more_chunks_are_kept_than_asked_for() -> None:
    chunks, first = SerializedChunks(kept=2), chunk(0)
    before = chunks.of(first)
    for block in (1, 2):
        chunks.of(chunk(block))
    assert chunks.of(first) is not before
    assert chunks.of(first) == before


def test_what_is_no_chunk_goes_as_it_is() -> None:
    event = pb.Event(heartbeat=pb.Heartbeat())
    assert SerializedChunks().of(event) is event

"""Between chunks and the messages that carry them."""

from __future__ import annotations

from serving.media.chunk import AccessUnit, Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb


def write_chunk(chunk: Chunk) -> pb.Chunk:
    """The `Chunk` message: an access unit for each frame, with the picture that it was made from, if any."""
    units = [
        pb.AccessUnit(data=unit.data, frame=frame, pts=frame, key=unit.key)
        for frame, unit in enumerate(chunk.units, start=chunk.first_frame)
    ]
    for unit, picture in zip(units, chunk.pictures, strict=False):
        unit.picture = picture
    return pb.Chunk(block=chunk.block, first_frame=chunk.first_frame, units=units)


def read_chunk(message: pb.Chunk) -> Chunk:
    """A chunk out of an event."""
    units = tuple(AccessUnit(unit.data, unit.key) for unit in message.units)
    pictures = tuple(unit.picture for unit in message.units if unit.HasField("picture"))
    return Chunk(message.block, message.first_frame, units, pictures)

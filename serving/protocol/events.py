"""Events as messages and as bytes, and the chunks in them: what replicas send to everybody who watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.media.chunk import AccessUnit, Chunk, ChunkSpan
from serving.pb.longtake.v1 import sessions_pb2 as pb

if TYPE_CHECKING:
    from engines.config.video_stream import Loop

LOOPS: dict[Loop, pb.VideoLoop] = {"plain": pb.VIDEO_LOOP_PLAIN, "batch": pb.VIDEO_LOOP_BATCH}


@dataclass(eq=False)
class SerializedEvent:
    """An event as it is sent on: its bytes as they came, and the message in them once somebody asks for it.

    Of a chunk few do: its `span` is known without that. Serve can send it, since it asks for no more than bytes.
    Neither bytes nor message may be changed.
    """

    data: bytes
    span: ChunkSpan | None = None
    _event: pb.Event | None = None

    @classmethod
    def of(cls, event: pb.Event) -> SerializedEvent:
        """Serialize a message."""
        return cls(event.SerializeToString(), _span(event), event)

    @classmethod
    def read(cls, data: bytes) -> SerializedEvent:
        """Parse bytes. Raises google.protobuf.message.DecodeError where they are no event."""
        event = pb.Event.FromString(data)
        span = _span(event)
        return cls(data, span, event if span is None else None)

    @property
    def event(self) -> pb.Event:
        """As a message. Raises google.protobuf.message.DecodeError where the bytes are none."""
        if self._event is None:
            self._event = pb.Event.FromString(self.data)
        return self._event

    def SerializeToString(self) -> bytes:  # noqa: N802
        """As that of the event."""
        return self.data


def _span(event: pb.Event) -> ChunkSpan | None:
    if not event.HasField("chunk"):
        return None
    return ChunkSpan(event.take, event.chunk.first_frame, len(event.chunk.units))


def gap_event(span: ChunkSpan) -> pb.Event:
    """What is sent in place of frames that are not."""
    return pb.Event(take=span.take, gap=pb.Gap(first_frame=span.first_frame, frames=span.frames))


def write_chunk(chunk: Chunk) -> pb.Chunk:
    """The `Chunk` message: an access unit for each frame, with the picture that it was made from, if any."""
    units = [
        pb.AccessUnit(data=unit.data, frame=frame, pts=frame, key=unit.key)
        for frame, unit in enumerate(chunk.units, start=chunk.first_frame)
    ]
    for unit, picture in zip(units, chunk.pictures, strict=False):
        unit.picture = picture
    loop = pb.VIDEO_LOOP_UNSPECIFIED if chunk.loop is None else LOOPS[chunk.loop]
    return pb.Chunk(block=chunk.block, first_frame=chunk.first_frame, units=units, loop=loop)


def read_chunk(message: pb.Chunk) -> Chunk:
    """A chunk out of an event."""
    units = tuple(AccessUnit(unit.data, unit.key) for unit in message.units)
    pictures = tuple(unit.picture for unit in message.units if unit.HasField("picture"))
    loop = next((loop for loop, number in LOOPS.items() if number == message.loop), None)
    return Chunk(message.block, message.first_frame, units, pictures, loop)

"""A subscriber: one stream of a session's events to another process."""

from __future__ import annotations

from collections.abc import AsyncIterator

from serving.media.chunk import ChunkSpan
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.event_queue import EventQueue, Queued
from serving.replication.messages import Item, Role


class Subscriber:
    """Who follows a session in which role, for how many `viewers`; events wait in a bounded queue, as bytes."""

    def __init__(self, role: Role, take: int, from_frame: int | None, viewers: int = 1) -> None:
        self.role = role
        self.was_controller = role is Role.CONTROLLER
        self.viewers = viewers
        self._queue: EventQueue[Item] = EventQueue(_gap, take, from_frame)
        self.finish = self._queue.finish

    def put_event(self, event: bytes) -> None:
        """Send an event that is not a chunk."""
        self._queue.put(Queued(Item(event), len(event)))

    def put_chunk(self, event: bytes, span: ChunkSpan) -> None:
        """Send a chunk."""
        self._queue.put(Queued(Item(event, span), len(event), span))

    def put_backlog(self, event: bytes, span: ChunkSpan) -> None:
        """Send a chunk that was kept for those who come late."""
        self._queue.put_backlog(Queued(Item(event, span), len(event), span))

    async def items(self, beat_s: float) -> AsyncIterator[Item]:
        """What was put; an empty item where nothing was for `beat_s`."""
        async for item in self._queue.events(beat_s):
            yield Item() if item is None else item


def _gap(event: pb.Event) -> Item:
    return Item(event.SerializeToString())

"""Chunks as bytes for many viewers: an event that all of a session's are sent is serialised once."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from serving.pb.longtake.v1 import sessions_pb2 as pb

KEPT = 32
"""Chunks whose bytes are kept. A session's viewers are sent a chunk one after the other."""


class SerializedEvent(NamedTuple):
    """An event that Serve can send: it asks for no more than its bytes."""

    event: pb.Event
    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        """As that of the event."""
        return self.data


class SerializedChunks:
    """The latest chunks that were sent, with their bytes. Events must not be changed once they were given here."""

    def __init__(self, kept: int = KEPT) -> None:
        self._most = kept
        # An event that is kept here lives, so that no other can have its identity.
        self._kept: OrderedDict[int, SerializedEvent] = OrderedDict()

    def of(self, event: pb.Event) -> pb.Event | SerializedEvent:
        """What is to be sent of an event: a chunk with its bytes, anything else as it is."""
        if not event.HasField("chunk"):
            return event
        known = self._kept.get(id(event))
        if known is None:
            known = self._kept[id(event)] = SerializedEvent(event, event.SerializeToString())
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return known

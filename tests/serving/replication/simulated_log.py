"""What a copy of a simulated session has: which copy made which frame, and which applied which command."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent


@dataclass(frozen=True)
class Frame:
    """`made_by` is the attempt that names the copy."""

    number: int
    made_by: str


@dataclass(frozen=True)
class Command:
    """Its answer is kept with it: a copy that has it applies no other of that id."""

    id: str
    applied_by: str


@dataclass(frozen=True)
class Log:
    """All that was made of a session, in order. Two copies may go on from one log in different ways."""

    entries: tuple[Frame | Command, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def with_entry(self, entry: Frame | Command) -> Log:
        return Log((*self.entries, entry))

    def begins_with(self, other: Log) -> bool:
        return self.entries[: len(other)] == other.entries

    def follows(self, other: Log) -> bool:
        """Whether it has one entry more."""
        return len(self) == len(other) + 1 and self.begins_with(other)

    def __str__(self) -> str:
        return f"{len(self.frames)} frames and {len(self.commands)} commands"

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Frame))

    @cached_property
    def commands(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(entry.id for entry in self.entries if isinstance(entry, Command))


EMPTY = Log()


def state_event(frames: int) -> SerializedEvent:
    """With which a stream begins."""
    return SerializedEvent.of(pb.Event(seq=frames, state=pb.Session(current_start_frame=frames)))


def frame_event(frame: Frame) -> SerializedEvent:
    """A chunk of one frame, whose data say which copy has made it."""
    unit = pb.AccessUnit(data=frame.made_by.encode(), frame=frame.number)
    chunk = pb.Chunk(first_frame=frame.number, units=[unit])
    return SerializedEvent.of(pb.Event(seq=frame.number + 1, chunk=chunk))

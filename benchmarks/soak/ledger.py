"""What one client has been shown and told of one session, and what of that was wrong. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from serving.pb.longtake.v1 import sessions_pb2 as pb

KEPT_FRAMES = 1000
"""Whose bytes are kept to be compared with."""


@dataclass
class Reread:
    """A second look at frames that were seen: how many, and how many of them were other ones."""

    frames: int = 0
    differing: int = 0
    disordered: int = 0

    def __add__(self, other: Reread) -> Reread:
        return Reread(
            self.frames + other.frames,
            self.differing + other.differing,
            self.disordered + other.disordered,
        )


@dataclass
class Ledger:
    """Counts frame by frame. `gaps` are the waits for a chunk while the session played: their ends and lengths."""

    next_frame: int = 0
    lost: int = 0
    doubled: int = 0
    last_at: float | None = None
    gaps: list[tuple[float, float]] = field(default_factory=list)
    _data: dict[int, bytes] = field(default_factory=dict)
    _prompts: dict[int, tuple[str, bool]] = field(default_factory=dict)
    _unanswered: set[str] = field(default_factory=set)

    # Frames

    def show(self, chunk: pb.Chunk, now: float) -> None:
        """A chunk has come."""
        for unit in chunk.units:
            self.doubled += unit.frame < self.next_frame
            self.lost += max(0, unit.frame - self.next_frame)
            self.next_frame = max(self.next_frame, unit.frame + 1)
            self._data.setdefault(unit.frame, unit.data)
            self._data.pop(unit.frame - KEPT_FRAMES, None)
        self._waited(now)
        self.last_at = now

    def skip(self, gap: pb.Gap) -> None:
        """The server says that it does not send some frames."""
        end = gap.first_frame + gap.frames
        self.lost += max(0, end - self.next_frame)
        self.next_frame = max(self.next_frame, end)

    def halt(self, now: float) -> None:
        """No chunk is waited for from now on."""
        self._waited(now)
        self.last_at = None

    def expect(self, now: float) -> None:
        """The next chunk is waited for from now on."""
        self.last_at = now

    def compare(self, chunks: Iterable[pb.Chunk]) -> Reread:
        """Another stream's chunks, in the order in which they came, beside what was shown."""
        found, before = Reread(), None
        for unit in (unit for chunk in chunks for unit in chunk.units):
            found.disordered += before is not None and unit.frame != before + 1
            before = unit.frame
            if unit.frame in self._data:
                found.frames += 1
                found.differing += self._data[unit.frame] != unit.data
        return found

    def _waited(self, now: float) -> None:
        if self.last_at is not None:
            self.gaps.append((now, now - self.last_at))

    # Prompts

    def ask(self, text: str) -> None:
        """A prompt is sent, which may be heard even if it is not answered."""
        self._unanswered.add(text)

    def accept(self, text: str, receipt: pb.Receipt) -> None:
        """A prompt got its receipt; one at the same frame as another takes that one's place."""
        self._unanswered.discard(text)
        self._prompts[receipt.cue_frame] = text, receipt.replicated

    def lost_prompts(self, known: Collection[tuple[int, str]], *, replicated: bool) -> list[str]:
        """Prompts with a receipt that are not among the frames and texts that the session knows.

        One whose place another took that got no answer is not lost.
        """
        there = {text for _, text in known}
        taken = {frame for frame, text in known if text in self._unanswered}
        return [
            text
            for frame, (text, kept) in self._prompts.items()
            if kept == replicated and text not in there and frame not in taken
        ]

    @property
    def prompts(self) -> int:
        """How many got a receipt and were not replaced by others."""
        return len(self._prompts)

"""The clock of a player: which frame is on screen, by when the chunks came."""

from __future__ import annotations

from collections import deque

from serving.media.chunk import FRAMES_PER_SECOND


class PlayerClock:
    """Plays at `fps` from the first chunk on, and waits for one that is late. Times are in seconds."""

    def __init__(self, fps: int = FRAMES_PER_SECOND) -> None:
        self._fps = fps
        self.rewind()

    def rewind(self) -> None:
        """Nothing is there to be shown, as at the beginning."""
        self._clock = Clock(self._fps)
        self._chunks: deque[int] = deque()
        self._end = 0
        self._paused = False

    def received(self, first_frame: int, end_frame: int, now: float) -> None:
        """A chunk is there to be shown, from `first_frame` to before `end_frame`."""
        if not self._chunks:
            self._clock.set(first_frame, now)
        elif self._clock.at(now) > self._end:
            self._clock.set(self._end, now)
        self._chunks.append(first_frame)
        self._end = end_frame
        if not self._paused:
            self._clock.run(now)

    def shown(self, now: float) -> int | None:
        """The frame on screen; None before the first."""
        return min(int(self._clock.at(now)), self._end - 1) if self._chunks else None

    def chunk_shown(self, now: float) -> int | None:
        """The first frame of the chunk on screen."""
        frame = self.shown(now)
        while frame is not None and len(self._chunks) > 1 and self._chunks[1] <= frame:
            self._chunks.popleft()
        return self._chunks[0] if self._chunks else None

    def pause(self, frame: int | None, now: float) -> None:
        """Stop, at `frame` where that is known."""
        self._paused = True
        self._clock.stop(now)
        if frame is not None and self._chunks:
            self._clock.set(frame, now)

    def resume(self, now: float) -> None:
        """Go on."""
        self._paused = False
        if self._chunks:
            self._clock.run(now)


class Clock:
    """Where a viewer who reports nothing is supposed to be, in frames at `fps`. It stands until it is run."""

    def __init__(self, fps: int, frame: float = 0.0) -> None:
        self._fps = fps
        self._frame = frame
        self._since: float | None = None

    @property
    def runs(self) -> bool:
        """Whether the frame changes with time."""
        return self._since is not None

    def at(self, now: float) -> float:
        """The frame that is being shown."""
        return self._frame if self._since is None else self._frame + (now - self._since) * self._fps

    def reaches(self, frame: float) -> float | None:
        """When `frame` is shown; None while the clock stands before it."""
        if self._since is None:
            return None
        return self._since + (frame - self._frame) / self._fps

    def set(self, frame: float, now: float) -> None:
        """Go on from `frame`."""
        self._frame = frame
        if self._since is not None:
            self._since = now

    def run(self, now: float) -> None:
        """Go on."""
        if self._since is None:
            self._since = now

    def stop(self, now: float) -> None:
        """Stand."""
        self._frame, self._since = self.at(now), None

"""Which of the pictures that come at any rate are shown: one for each sixteenth of a second."""

from __future__ import annotations

from serving.media.chunk import FRAMES_PER_SECOND

SECOND_US = 1_000_000

GAP_US = SECOND_US
"""After so long a silence, or where a client's clock goes back, time begins anew: nothing fills the gap."""


class PictureSampler:
    """Says for how many frames each picture is shown, by the times at which they were taken.

    A frame shows the first picture that was taken no more than half a frame before it: it never waits for a later
    one. Where pictures come too rarely one is shown for several frames.
    """

    def __init__(self) -> None:
        self._start_us = 0
        self._last_us: int | None = None
        self._frames = 0

    def frames_of(self, time_us: int) -> int:
        """For how many frames the next picture is shown, which was taken at `time_us`."""
        if self._begins(time_us):
            self._start_us, self._frames = time_us, 0
        self._last_us = time_us
        due = self._due(time_us)
        frames = max(0, due - self._frames)
        self._frames = max(due, self._frames)
        return frames

    def shows(self, time_us: int) -> bool:
        """Whether the next picture would be shown if it was taken at `time_us`."""
        return self._begins(time_us) or self._due(time_us) > self._frames

    def _begins(self, time_us: int) -> bool:
        return self._last_us is None or not 0 <= time_us - self._last_us <= GAP_US

    def _due(self, time_us: int) -> int:
        """Frames up to half a frame behind this time."""
        halves = 2 * FRAMES_PER_SECOND * (time_us - self._start_us) // SECOND_US
        return (halves + 1) // 2 + 1

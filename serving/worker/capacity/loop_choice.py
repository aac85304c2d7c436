"""In which loop the blocks of restyled videos are made: as many passes each, or one pass for blocks in a row."""

from __future__ import annotations

from engines.config.video_stream import Loop, LoopSetting
from serving.worker.capacity.admission import MOST_BUSY

CHANGED_AFTER_S = 10.0
"""A loop is kept for so long at least."""

EASED = 0.75
"""A device that would be busy for this part of its time at most, in a plain loop, goes back to it."""

WORTH = 0.9
"""A stream batch is worth its delay where it takes no more than this part of a plain loop's time."""


def needs_batch(plain_busy: float, batch_busy: float) -> bool:
    """Whether a plain loop would take more of a device's time than there is, and a stream batch less."""
    return plain_busy > MOST_BUSY and batch_busy <= WORTH * plain_busy


class LoopChoice:
    """Chooses for all videos of a device: plain while its time suffices, else stream batch, if that takes less.

    In a stream batch a block comes out `steps` - 1 blocks later. Paper: StreamDiffusionV2, section 3.3.
    """

    def __init__(self, setting: LoopSetting = "auto") -> None:
        self._setting = setting
        self._changed_at: float | None = None
        self.loop: Loop = "plain" if setting == "auto" else setting

    def look(self, plain_busy: float, batch_busy: float, now: float) -> Loop:
        """The loop to use, where a plain one takes so much of the device's time, and a stream batch so much."""
        if self._setting != "auto":
            return self.loop
        if self._changed_at is not None and now - self._changed_at < CHANGED_AFTER_S:
            return self.loop
        wanted: Loop = self.loop
        if self.loop == "plain" and needs_batch(plain_busy, batch_busy):
            wanted = "batch"
        elif self.loop == "batch" and (plain_busy <= EASED or batch_busy > plain_busy):
            wanted = "plain"
        if wanted != self.loop:
            self.loop, self._changed_at = wanted, now
        return self.loop

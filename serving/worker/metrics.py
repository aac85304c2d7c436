"""What a denoiser counts and times; where that goes is not its business."""

from __future__ import annotations

from typing import Protocol


class Metrics(Protocol):
    """Of one denoiser."""

    def stage(self, name: str, seconds: float) -> None:
        """A stage has run for a block: a device's own time, or the host's where the host does the work."""

    def slots(self, used: int, free: int) -> None:
        """Sessions that are open, and that could be."""

    def block(self, *, late: bool) -> None:
        """A block has been delivered."""

    def interval(self, seconds: float) -> None:
        """Between a session's last two chunks."""

    def command_to_frame(self, seconds: float) -> None:
        """A cue that was to apply at once has been delivered."""

    def resumed(self, what: str) -> None:
        """A session or its decoder went on elsewhere."""

    def refused(self, reason: str) -> None:
        """A request was refused."""

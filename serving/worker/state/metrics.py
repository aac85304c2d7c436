"""What a denoiser counts and times; where that goes is not its business."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Following(NamedTuple):
    """Who follows the sessions of a replica.

    `unkept` is how many have no standby, and would be lost with the replica; `lag_s` is for how long the oldest
    block has waited that a standby has not taken, in seconds. So many as are `suspended` have no slot.
    """

    viewers: int
    unkept: int
    lag_s: float
    suspended: int = 0


class Metrics(Protocol):
    """Of one denoiser."""

    def stage(self, name: str, seconds: float) -> None:
        """A stage has run for a block: a device's own time, or the host's where the host does the work."""

    def slots(self, used: int, free: int) -> None:
        """Sessions that are open, and that could be."""

    def following(self, now: Following) -> None:
        """Who follows the sessions."""

    def block(self, *, late: bool, slack_s: float | None) -> None:
        """A block has been delivered, so long before it was to be on screen; None where nobody waits for it."""

    def interval(self, seconds: float) -> None:
        """Between a session's last two chunks."""

    def command_to_frame(self, seconds: float) -> None:
        """A cue that was to apply at once has been delivered."""

    def decoder_changed(self, *, planned: bool) -> None:
        """A session goes on at another decoder; `planned` where the one before was being taken away."""

    def refused(self, reason: str) -> None:
        """A request was refused."""

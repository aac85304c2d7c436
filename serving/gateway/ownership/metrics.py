"""What a manager counts; where that goes is not its business."""

from __future__ import annotations

from typing import Literal, Protocol

from typing_extensions import override

Stage = Literal["denoiser", "decoder", "manager", "server"]
"""What of a session went on elsewhere: it itself, its decoder, its standby's copy, or all of it."""


class GatewayMetrics(Protocol):
    """Of one manager."""

    def sent(self, nbytes: int) -> None:
        """Chunks are on their way to viewers: over all of them so many bytes."""

    def skipped(self, frames: int) -> None:
        """Viewers are told of a gap, since they did not read in time: over all of them so many frames."""

    def failed_over(self, stage: Stage, *, planned: bool) -> None:
        """A part of a session goes on elsewhere; `planned` where its replica was being taken away."""


class Uncounted(GatewayMetrics):
    """Counts nowhere."""

    @override
    def sent(self, nbytes: int) -> None:
        pass

    @override
    def skipped(self, frames: int) -> None:
        pass

    @override
    def failed_over(self, stage: Stage, *, planned: bool) -> None:
        pass

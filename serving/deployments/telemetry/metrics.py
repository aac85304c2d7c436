"""What replicas count and time, exported through Ray's metrics on every node.

Names are as Prometheus has them: base units at their end, counters without `_total`, which Ray adds, as it puts
`ray_` before all of them.
"""

from __future__ import annotations

from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram
from typing_extensions import override

from serving.gateway.ownership.metrics import GatewayMetrics, Stage
from serving.worker.state.metrics import Following, Metrics

SECONDS: list[float] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1, 2, 5]


class StageTimes:
    """How long a replica's stages take; Ray adds the names of application, deployment and replica."""

    def __init__(self) -> None:
        self._stage = Histogram("longtake_stage_seconds", "Time of a stage for a block.", SECONDS, ("stage",))

    def stage(self, name: str, seconds: float) -> None:
        """A stage has run for a block: a device's own time, or the host's where the host does the work."""
        self._stage.observe(seconds, {"stage": name})


class DenoiserMetrics(StageTimes, Metrics):
    """Metrics of one denoiser replica."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions = Gauge("longtake_sessions", "Sessions that have a slot.")
        self._free = Gauge("longtake_slots_free", "Sessions that could still be opened.")
        self._viewers = Gauge("longtake_viewers", "Who watches the sessions, controllers included.")
        self._suspended = Gauge("longtake_sessions_suspended", "Sessions without a slot, paused for long.")
        self._unkept = Gauge("longtake_standby_absent", "Sessions that have no standby at the moment.")
        self._lag = Gauge(
            "longtake_standby_lag_seconds", "How long the oldest block has waited that a standby has not taken."
        )
        self._interval = Histogram("longtake_chunk_interval_seconds", "Time between a session's chunks.", SECONDS)
        self._blocks = Counter("longtake_blocks", "Blocks delivered.", ("late",))
        self._slack = Histogram(
            "longtake_deadline_slack_seconds",
            "From a block's delivery to when it is due on screen; of late ones, since then.", SECONDS, ("late",),
        )  # fmt: skip
        self._applied = Histogram(
            "longtake_command_to_frame_seconds", "From a cue's command to the chunk it changed.", SECONDS
        )
        self._failovers = _failovers()
        self._refused = Counter("longtake_refused", "Requests refused.", ("reason",))

    @override
    def slots(self, used: int, free: int) -> None:
        self._sessions.set(used)
        self._free.set(free)

    @override
    def following(self, now: Following) -> None:
        self._viewers.set(now.viewers)
        self._unkept.set(now.unkept)
        self._lag.set(now.lag_s)
        self._suspended.set(now.suspended)

    @override
    def block(self, *, late: bool, slack_s: float | None) -> None:
        self._blocks.inc(1, {"late": _flag(late)})
        if slack_s is not None:
            self._slack.observe(abs(slack_s), {"late": _flag(slack_s < 0)})

    @override
    def interval(self, seconds: float) -> None:
        self._interval.observe(seconds)

    @override
    def command_to_frame(self, seconds: float) -> None:
        self._applied.observe(seconds)

    @override
    def decoder_changed(self, *, planned: bool) -> None:
        self._failovers.inc(1, {"stage": "decoder", "planned": _flag(planned)})

    def text_encoder_changed(self) -> None:
        """A prompt's text encoder was lost, and another one has encoded it."""
        self._failovers.inc(1, {"stage": "text", "planned": _flag(False)})

    @override
    def refused(self, reason: str) -> None:
        self._refused.inc(1, {"reason": reason})


class ManagerMetrics(GatewayMetrics):
    """Metrics of one manager."""

    def __init__(self) -> None:
        self._sent = Counter("longtake_sent_bytes", "Encoded pictures sent to viewers, as they were made.")
        self._skipped = Counter("longtake_gap_frames", "Frames that viewers were not sent: they read too slowly.")
        self._failovers = _failovers()

    @override
    def sent(self, nbytes: int) -> None:
        self._sent.inc(nbytes)

    @override
    def skipped(self, frames: int) -> None:
        self._skipped.inc(frames)

    @override
    def failed_over(self, stage: Stage, *, planned: bool) -> None:
        self._failovers.inc(1, {"stage": stage, "planned": _flag(planned)})


def _flag(value: bool) -> str:
    return str(value).lower()


def _failovers() -> Counter:
    """Counted by whoever notices: a denoiser, or a manager."""
    labels: Any = ("stage", "planned")
    return Counter("longtake_failovers", "Parts of sessions that went on elsewhere.", labels)

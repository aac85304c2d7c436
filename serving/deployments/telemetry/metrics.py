"""What a replica counts and times, exported through Ray's metrics on every node."""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge, Histogram
from typing_extensions import override

from serving.worker.metrics import Metrics

MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 750, 1000, 2000, 5000]


class StageTimes:
    """How long a replica's stages take; Ray adds the names of application, deployment and replica."""

    def __init__(self) -> None:
        self._stage = Histogram("longtake_stage_ms", "Time of a stage for a block.", MILLISECONDS, ("stage",))

    def stage(self, name: str, seconds: float) -> None:
        """A stage has run for a block: a device's own time, or the host's where the host does the work."""
        self._stage.observe(1000 * seconds, {"stage": name})


class DenoiserMetrics(StageTimes, Metrics):
    """Metrics of one denoiser replica."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions = Gauge("longtake_sessions", "Sessions that are open.")
        self._free = Gauge("longtake_slots_free", "Sessions that could still be opened.")
        self._interval = Histogram("longtake_chunk_interval_ms", "Time between a session's chunks.", MILLISECONDS)
        self._blocks = Counter("longtake_blocks", "Blocks delivered.", ("late",))
        self._applied = Histogram(
            "longtake_command_to_frame_ms", "From a cue's command to the chunk it changed.", MILLISECONDS
        )
        self._resumed = Counter("longtake_resumed", "Sessions and decoders that went on elsewhere.", ("what",))
        self._refused = Counter("longtake_refused", "Requests refused.", ("reason",))

    @override
    def slots(self, used: int, free: int) -> None:
        self._sessions.set(used)
        self._free.set(free)

    @override
    def block(self, *, late: bool) -> None:
        self._blocks.inc(1, {"late": str(late).lower()})

    @override
    def interval(self, seconds: float) -> None:
        self._interval.observe(1000 * seconds)

    @override
    def command_to_frame(self, seconds: float) -> None:
        self._applied.observe(1000 * seconds)

    @override
    def resumed(self, what: str) -> None:
        self._resumed.inc(1, {"what": what})

    @override
    def refused(self, reason: str) -> None:
        self._refused.inc(1, {"reason": reason})

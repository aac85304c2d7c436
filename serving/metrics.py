"""What a replica counts and times, exported through Ray's metrics on every node."""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge, Histogram

MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 750, 1000, 2000, 5000]


class StageTimes:
    """How long a replica's stages take; Ray adds the names of application, deployment and replica."""

    def __init__(self) -> None:
        self._stage = Histogram("longtake_stage_ms", "Time of a stage for a block.", MILLISECONDS, ("stage",))

    def stage(self, name: str, seconds: float) -> None:
        """A stage has run for a block: a device's own time, or the host's where the host does the work."""
        self._stage.observe(1000 * seconds, {"stage": name})


class Metrics(StageTimes):
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

    def slots(self, used: int, free: int) -> None:
        """Sessions that are open, and that could be."""
        self._sessions.set(used)
        self._free.set(free)

    def block(self, *, late: bool) -> None:
        """A block has been delivered."""
        self._blocks.inc(1, {"late": str(late).lower()})

    def interval(self, seconds: float) -> None:
        """Between a session's last two chunks."""
        self._interval.observe(1000 * seconds)

    def command_to_frame(self, seconds: float) -> None:
        """A cue that was to apply at once has been delivered."""
        self._applied.observe(1000 * seconds)

    def resumed(self, what: str) -> None:
        """A session or its decoder went on elsewhere."""
        self._resumed.inc(1, {"what": what})

    def refused(self, reason: str) -> None:
        """A request was refused."""
        self._refused.inc(1, {"reason": reason})

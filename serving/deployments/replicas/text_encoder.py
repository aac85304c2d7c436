"""The replica of the text encoder, where stages are separate."""

from __future__ import annotations

import logging
import time

from serving.config import ServerConfig
from serving.deployments.replicas.model_runtime import (
    build_text_encoder,
    load,
)
from serving.deployments.replicas.remote_stages import SentPrompt
from serving.deployments.scaling.replica_stats import BusyTime, ReplicaStats
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import StageTimes

logger = logging.getLogger(__name__)

TENTHS = 10
MOST_TENTHS = 7
"""Of its time: what it is busy for above that, prompts wait for each other."""


class TextEncoderReplica:
    """Encodes prompts; holds no session, and no other network."""

    def __init__(self, config: ServerConfig) -> None:
        join_serve_logs()
        began = time.monotonic()
        self._times, self._busy = StageTimes(), BusyTime()
        self._text = build_text_encoder(load(config, ["text_encoder"]), config, self._worked).encoder
        self._stats = ReplicaStats.since(began)

    def _worked(self, stage: str, seconds: float) -> None:
        self._times.stage(stage, seconds)
        self._busy.worked(seconds)

    async def encode(self, text: str) -> SentPrompt:
        """The prompt of a text."""
        prompt = await self._text.encode(text)
        logger.info("prompt encoded", extra={"rows": len(prompt.rows)})
        return SentPrompt.of(prompt)

    async def check_health(self) -> None:
        """Raise if it encodes nothing any more."""
        self._text.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `by_slots`: tenths of its time. It holds nothing, and what one prompt takes, the next one may."""
        return self._stats.report(used=TENTHS * self._busy.share(), slots=MOST_TENTHS)

    async def room(self) -> int:
        """It can always encode one more prompt."""
        return 1

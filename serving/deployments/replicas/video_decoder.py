"""The replica of the video decoder, where stages are separate."""

from __future__ import annotations

import logging
import time

from engines.streaming.state import Block
from serving.config import ServerConfig
from serving.deployments.replicas.model_runtime import (
    build_decoder,
    load,
)
from serving.deployments.replicas.remote_stages import Latents
from serving.deployments.scaling.replica_stats import ReplicaStats
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import StageTimes
from serving.media.chunk import Chunk
from serving.pipeline.video_decoder import DecoderStart
from serving.tracing.exporter import exporting_tracer

logger = logging.getLogger(__name__)

ABANDONED_S = 30.0
"""A session that nobody has spoken of for so long was left by a denoiser that died."""


class VideoDecoderReplica:
    """Decodes and encodes the sessions that are pinned to it; it has no other network."""

    def __init__(self, config: ServerConfig) -> None:
        join_serve_logs()
        began = time.monotonic()
        built = build_decoder(load(config, ["codec"]), config, StageTimes().stage, exporting_tracer())
        self._decoder = built.decoder
        self._wanted_at: dict[str, float] = {}
        self._admitted = 0
        self._stats = ReplicaStats.since(began)

    async def open(self, key: str, next_block: int, first_frame: int, warm: list[Latents]) -> None:
        """Begin to decode a session here."""
        self._wanted_at[key] = time.monotonic()
        start = DecoderStart(next_block, first_frame, [latents.tensor() for latents in warm])
        with self._stats.refusing():
            await self._decoder.open(key, start)
        self._admitted += 1
        logger.info("decoder opened", extra={"session": key.partition(".")[0], "block": next_block})

    async def decode(self, key: str, block: int, latents: Latents, traceparent: str | None, lead_in: int) -> Chunk:
        """The chunk of a block, whose span is `traceparent`."""
        await self.keep([key])
        return await self._decoder.decode(key, Block(block, latents.tensor(), lead_in=lead_in), traceparent)

    async def close(self, key: str) -> None:
        """Let go of a session."""
        self._wanted_at.pop(key, None)
        await self._decoder.close(key)

    async def keep(self, keys: list[str]) -> None:
        """Their denoisers still want these sessions; others are closed after a while."""
        self._wanted_at |= {key: time.monotonic() for key in keys if key in self._wanted_at}

    async def check_health(self) -> None:
        """Let go of the sessions that nobody wants any more. Raise if it decodes none any more."""
        self._decoder.check()
        now = time.monotonic()
        for key in [key for key, at in self._wanted_at.items() if now - at > ABANDONED_S]:
            logger.warning("decoder abandoned", extra={"session": key.partition(".")[0]})
            await self.close(key)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `by_slots`: the sessions that are open here, and how many could be."""
        used, free = len(self._decoder.decoder.keys), self._decoder.decoder.free
        return self._stats.report(used=used, slots=used + free, admitted=self._admitted)

    async def room(self) -> int:
        """How many sessions it can still decode."""
        return self._decoder.decoder.free

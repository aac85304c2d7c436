"""The replica of the video decoder, where stages are separate."""

from __future__ import annotations

import logging

from engines.streaming.state import Block
from serving.config import ServerConfig
from serving.deployments.replicas.model_runtime import (
    build_decoder,
    load,
)
from serving.deployments.replicas.remote_stages import Latents
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import StageTimes
from serving.media.chunk import Chunk
from serving.pipeline.video_decoder import DecoderStart

logger = logging.getLogger(__name__)


class VideoDecoderReplica:
    """Decodes and encodes the sessions that are pinned to it; it has no other network."""

    def __init__(self, config: ServerConfig) -> None:
        join_serve_logs()
        self._decoder = build_decoder(load(config, ["codec"]), config, StageTimes().stage)

    async def open(self, key: str, next_block: int, first_frame: int, warm: list[Latents]) -> None:
        """Begin to decode a session here."""
        start = DecoderStart(next_block, first_frame, [latents.tensor() for latents in warm])
        await self._decoder.open(key, start)
        logger.info("decoder opened", extra={"session": key.partition(".")[0], "block": next_block})

    async def decode(self, key: str, block: int, latents: Latents) -> Chunk:
        """The chunk of a block."""
        return await self._decoder.decode(key, Block(block, latents.tensor()))

    async def close(self, key: str) -> None:
        """Let go of a session."""
        await self._decoder.close(key)

    async def room(self) -> int:
        """How many sessions it can still decode."""
        return self._decoder.decoder.free

"""The replica of the text encoder, where stages are separate."""

from __future__ import annotations

import logging

from serving.config import ServerConfig
from serving.deployments.replicas.model_runtime import (
    build_text_encoder,
    load,
)
from serving.deployments.replicas.remote_stages import SentPrompt
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import StageTimes

logger = logging.getLogger(__name__)


class TextEncoderReplica:
    """Encodes prompts; holds no session, and no other network."""

    def __init__(self, config: ServerConfig) -> None:
        join_serve_logs()
        self._text = build_text_encoder(load(config, ["text_encoder"]), StageTimes().stage)

    async def encode(self, text: str) -> SentPrompt:
        """The prompt of a text."""
        prompt = await self._text.encode(text)
        logger.info("prompt encoded", extra={"rows": len(prompt.rows)})
        return SentPrompt.of(prompt)

    async def room(self) -> int:
        """It can always encode one more prompt."""
        return 1

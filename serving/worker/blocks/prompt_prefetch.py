"""Prompts encoded before their blocks are made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from serving.background_tasks import BackgroundTasks
from serving.errors import ReplicaLost
from serving.pipeline.stages import TextEncoderStage
from serving.worker.state.active_session import ActiveSession
from serving.worker.state.session_guard import SessionGuard

logger = logging.getLogger(__name__)

PROMPTS_AHEAD_BLOCKS = 2
RETRY_S = 0.5


class PromptPrefetch:
    """Encodes what the next blocks of a session need, so that none of them waits for it."""

    def __init__(
        self,
        text: TextEncoderStage,
        guard: SessionGuard,
        wake: Callable[[], None],
    ) -> None:
        self._text = text
        self._guard = guard
        self._wake = wake
        self._background = BackgroundTasks()

    def begin(self, session: ActiveSession) -> None:
        """Begin to encode what is not encoded yet; one text of a session at a time."""
        if session.encoding is not None or session.closed or session.ending:
            return
        texts = [text for text in session.upcoming_texts(PROMPTS_AHEAD_BLOCKS) if text not in session.prompts]
        if texts:
            encoding = self._encode(session, texts)
            session.encoding = self._background.start("encoding prompts", encoding, session=session.id)

    async def _encode(self, session: ActiveSession, texts: Sequence[str]) -> None:
        """A text that cannot be encoded now is tried again; the session's clock waits for it."""
        try:
            with self._guard.working(session, "encoding its prompt"):
                await self._encode_each(session, texts)
        finally:
            session.encoding = None
            self._wake()

    async def _encode_each(self, session: ActiveSession, texts: Sequence[str]) -> None:
        try:
            for text in texts:
                began = time.monotonic()
                session.prompts[text] = await self._text.encode(text)
                session.encoded_at[text] = began, time.monotonic()
                # Cues may have been taken away, or have been replaced, since they were encoded.
                session.forget_prompts()
        except ReplicaLost as error:
            logger.warning("prompts wait for a text encoder", extra={"session": session.id, "why": str(error)})
            await asyncio.sleep(RETRY_S)

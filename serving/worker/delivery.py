"""From a block that was made to the chunk that its viewers see."""

from __future__ import annotations

from serving.pipeline.video_decoder import DecoderStart
from serving.worker.active_session import ActiveSession


def decoder_start(session: ActiveSession, block: int) -> DecoderStart:
    """Where a decoder begins in order to decode `block` next."""
    stream = session.stream
    first_kept = stream.blocks - len(stream.recent)
    first_frame = session.config.blocks.pixel_frames(block)
    return DecoderStart(block, first_frame, list(stream.recent)[: block - first_kept])

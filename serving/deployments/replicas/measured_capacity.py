"""What a replica has time for, measured on it before its first session."""

from __future__ import annotations

import logging
from dataclasses import replace

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.config.video_stream import LOOPS, AnyStreamConfig, VideoStreamConfig
from engines.device.host_threads import usable_cores
from engines.streaming.warmup import block_seconds
from engines.video import warmup as video_warmup
from engines.video.warmup import BlockSeconds
from serving.config import DTYPES, ServerConfig
from serving.deployments.replicas.model_runtime import Denoising, streams, video_streams
from serving.pipeline.stages import LocalDecoder
from serving.worker.capacity.capacity import Capacity

logger = logging.getLogger(__name__)

LONGEST_S = 2.0
"""Blocks that are expected to take longer are not timed at the start."""


def measured_capacity(
    config: ServerConfig, model: ModelConfig, denoising: Denoising, decoder: LocalDecoder | None
) -> Capacity:
    """What blocks of the sizes that are warm take here; nothing is known of a decoder in another process.

    Sizes that take long are left to estimates: ten blocks of them would hold the start up for minutes.
    """
    one_at_a_time = config.device == "cuda" or usable_cores() == 1
    text, videos = streams(config), video_streams(config)
    sizes = [] if config.other_sizes else [(stream.height, stream.width) for stream in (text or videos)]
    looped = [replace(stream, loop=loop) for stream in videos for loop in LOOPS]
    warm: list[AnyStreamConfig] = [*text, *looped]
    capacity = Capacity(
        model.transformer, warm[0], together=one_at_a_time and decoder is not None, encodes_too=one_at_a_time,
        sizes=sizes, loop=config.video_loop,
    )  # fmt: skip
    for stream in warm:
        if capacity.denoising.expect(stream, 0.0) > LONGEST_S:
            continue
        encoding, seconds = denoising.executor.submit(_seconds, denoising, stream).result()
        capacity.denoising.measured(stream, seconds)
        times = {"denoise_ms": round(1000 * seconds)}
        if isinstance(stream, VideoStreamConfig):
            capacity.encoding.measured(stream, encoding)
            times["encode_ms"] = round(1000 * encoding)
        if decoder is not None:
            decoding = decoder.measure(stream, model.vae.latent_channels, DTYPES[config.dtype])
            capacity.delivering.measured(stream, decoding)
            times["deliver_ms"] = round(1000 * decoding)
        logger.info("time of a block", extra={"size": f"{stream.height}x{stream.width}", **times})
    return capacity


def _seconds(denoising: Denoising, stream: AnyStreamConfig) -> BlockSeconds:
    """Of a block; its pictures take none where it is made from none."""
    if isinstance(stream, StreamConfig):
        return BlockSeconds(0.0, block_seconds(denoising.engine.text, stream))
    assert denoising.encoder is not None
    return video_warmup.block_seconds(denoising.engine.video, denoising.encoder, stream)

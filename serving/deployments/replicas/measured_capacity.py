"""What a replica has time for, measured on it before its first session."""

from __future__ import annotations

import logging

from engines.config.model import ModelConfig
from engines.device.host_threads import usable_cores
from engines.streaming.warmup import block_seconds
from serving.config import DTYPES, ServerConfig
from serving.deployments.replicas.model_runtime import Denoising, streams
from serving.pipeline.stages import LocalDecoder
from serving.worker.capacity.capacity import Capacity

logger = logging.getLogger(__name__)


def measured_capacity(
    config: ServerConfig, model: ModelConfig, denoising: Denoising, decoder: LocalDecoder | None
) -> Capacity:
    """What blocks of every size that is warm take here; nothing is known of a decoder in another process."""
    together = decoder is not None and (config.device == "cuda" or usable_cores() == 1)
    warm = streams(config)
    capacity = Capacity(model.transformer, warm[0], together=together)
    for stream in warm:
        seconds = denoising.executor.submit(block_seconds, denoising.generator, stream).result()
        capacity.denoising.measured(stream, seconds)
        times = {"denoise_ms": round(1000 * seconds)}
        if decoder is not None:
            decoding = decoder.measure(stream, model.vae.latent_channels, DTYPES[config.dtype])
            capacity.delivering.measured(stream, decoding)
            times["deliver_ms"] = round(1000 * decoding)
        logger.info("time of a block", extra={"size": f"{stream.height}x{stream.width}", **times})
    return capacity

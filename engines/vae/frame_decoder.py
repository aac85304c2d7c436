"""From latents to pictures, beside whatever else the device does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from engines.device.side_stream import SideStream
from engines.vae.conv_cache import ConvCache
from engines.vae.protocol import StreamingVAE


class FrameDecoder:
    """Decodes the streams of one codec; what a stream's decoder remembers is the caller's `ConvCache`."""

    def __init__(self, codec: StreamingVAE, side_stream: SideStream) -> None:
        self._codec = codec
        self._side_stream = side_stream

    @property
    def receptive_field(self) -> int:
        """Latent frames after which nothing older can be seen in a cache."""
        return self._codec.decoder_receptive_field

    def empty_cache(self) -> ConvCache:
        """The cache of a decoder that has seen nothing."""
        return self._codec.start_decoding()

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, cache: ConvCache, ready: torch.cuda.Event | None = None
    ) -> tuple[Tensor, ConvCache]:
        """Pictures [frames, height, width, 3] uint8 on the CPU, and the cache after them.

        `latents` are [frames, channels, h/8, w/8]; on CUDA they are there at `ready`, and this waits for the
        pictures to arrive.
        """
        return self._side_stream.run(partial(_decode, self._codec, latents, cache), ready)

    @torch.inference_mode()
    def rebuild_cache(self, blocks: Sequence[Tensor]) -> ConvCache:
        """The cache after latents [frames, channels, h/8, w/8] of `blocks`, from nothing."""
        # Memory that the decoder's queue has taken is of no use to the other, so all decoding is done there.
        return self._side_stream.run(partial(_rebuilt, self._codec, blocks), None)


def _decode(codec: StreamingVAE, latents: Tensor, cache: ConvCache) -> tuple[Tensor, ConvCache]:
    decoded = codec.decode(latents.unsqueeze(0), cache)
    pictures = decoded.frames[0].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    # Copied from this queue: in the caller's they would wait for the passes that it has been given meanwhile.
    return pictures.to("cpu", non_blocking=True), decoded.cache


def _rebuilt(codec: StreamingVAE, blocks: Sequence[Tensor]) -> ConvCache:
    cache = codec.start_decoding()
    for latents in blocks:
        cache = codec.decode(latents.unsqueeze(0), cache).cache
    return cache

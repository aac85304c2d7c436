"""From latents to pictures, beside whatever else the device does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.video_stream import AnyStreamConfig
from engines.device.conv_search import searching_convolutions
from engines.device.event_timer import Lap
from engines.device.host_copy import HostCopier, to_device
from engines.device.memory_budget import typed_out_of_memory
from engines.device.side_stream import SideStream
from engines.vae.conv_cache import ConvCache
from engines.vae.protocol import StreamingDecoder


class Pictures(NamedTuple):
    """Pictures [frames, height, width, 3] uint8 on the CPU, the decoder's cache after them, and their decoding."""

    frames: Tensor
    cache: ConvCache
    lap: Lap


class FrameDecoder:
    """Decodes the streams of one codec; what a stream's decoder remembers is the caller's `ConvCache`.

    Its methods raise DeviceOutOfMemory where there is no memory left; caches stay of use then.
    """

    def __init__(self, codec: StreamingDecoder, side_stream: SideStream, copier: HostCopier) -> None:
        self._codec = codec
        self._side_stream = side_stream
        self._copier = copier
        self._loaded = side_stream.record_event()

    @property
    def receptive_field(self) -> int:
        """Latent frames after which nothing older can be seen in a cache."""
        return self._codec.decoder_receptive_field

    def empty_cache(self) -> ConvCache:
        """The cache of a decoder that has seen nothing."""
        return self._codec.start_decoding()

    @torch.inference_mode()
    def decode(self, latents: Tensor, cache: ConvCache, ready: torch.cuda.Event | None = None) -> Pictures:
        """Decode `latents` [frames, channels, h/8, w/8], which may be on the host.

        On CUDA they are there at `ready`, or at the end of the caller's queue, and this waits for the pictures to
        arrive.
        """
        with typed_out_of_memory("the pictures of a block"):
            begun = self._side_stream.begin(partial(self._decoded, latents, cache), ready)
            pictures, after = begun.value
            (frames,) = self._copier.begin([pictures], begun.done).result()
        return Pictures(frames, after, begun.lap)

    @torch.inference_mode()
    def rebuild_cache(self, blocks: Sequence[Tensor], ready: torch.cuda.Event | None = None) -> ConvCache:
        """The cache after latents [frames, channels, h/8, w/8] of `blocks`, from nothing.

        On CUDA they are there at `ready`, or at the end of the caller's queue, and this waits. Those that are on
        the host wait for nothing.
        """
        if all(latents.device.type == "cpu" for latents in blocks):
            ready = self._loaded
        # Memory that the decoder's queue has taken is of no use to the other, so all decoding is done there.
        with typed_out_of_memory("a decoder's cache"):
            return self._side_stream.begin(partial(self._rebuilt, blocks), ready).wait()

    def warm_up(self, config: AnyStreamConfig, channels: int, dtype: torch.dtype) -> None:
        """Decode a first and two later blocks of zeros, in the thread that is to decode: libraries plan for each.

        The fastest ways to compute such blocks are searched for. The second of the later ones meets a cache such
        as all that follow.
        """
        cache = self.empty_cache()
        device = self._side_stream.device
        with searching_convolutions(device):
            for block in range(3):
                shape = config.latent_shape(channels, config.blocks.frames_of(block))
                cache = self.decode(torch.zeros(shape, dtype=dtype, device=device), cache).cache

    def _decoded(self, latents: Tensor, cache: ConvCache) -> tuple[Tensor, ConvCache]:
        decoded = self._codec.decode(self._here(latents), cache)
        pictures = decoded.frames[0].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return pictures, decoded.cache

    def _rebuilt(self, blocks: Sequence[Tensor]) -> ConvCache:
        cache = self._codec.start_decoding()
        for latents in blocks:
            cache = self._codec.decode(self._here(latents), cache).cache
        return cache

    def _here(self, latents: Tensor) -> Tensor:
        return to_device(latents, self._side_stream.device).unsqueeze(0)

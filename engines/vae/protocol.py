"""The interface between latents and pictures, met by the Wan VAE, TAEHV and the autoencoder over patches."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from engines.config.geometry import SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.errors import StreamError
from engines.vae.conv_cache import ConvCache
from kernels.dispatch import KernelBackends
from kernels.vae.ops import VAEOps


class Decoded(NamedTuple):
    """Pictures [B, frames, 3, height, width] fp32 in 0..1, and the decoder's cache after them."""

    frames: Tensor
    cache: ConvCache


class Encoded(NamedTuple):
    """Latents [B, latent frames, channels, height/8, width/8], and the encoder's cache after them."""

    latents: Tensor
    cache: ConvCache


class StreamingDecoder(Protocol):
    """A streaming decoder: any split of a stream into calls gives the same pictures.

    Latents are normalized, as the denoiser makes and reads them. n latent frames are 1 + 4(n-1) pixel frames
    at the start of a stream and 4n later.
    """

    @property
    def decoder_receptive_field(self) -> int:
        """Latent frames after which nothing older can be seen in the decoder's cache."""

    def start_decoding(self) -> ConvCache:
        """The cache of a decoder that has seen nothing."""

    def decode(self, latents: Tensor, cache: ConvCache) -> Decoded:
        """Decode the next latent frames of a stream; `cache` stays valid, whatever happens.

        Args:
            latents: [B, T >= 1, channels, height/8, width/8] in the dtype of the weights.
            cache: what `start_decoding` or the stream's last call returned.

        Raises:
            ValueError: the latents have another number of axes or channels.
            StreamError: the cache belongs to another network, size, batch or dtype.
        """


class StreamingVAE(StreamingDecoder, Protocol):
    """A streaming autoencoder: any split of a clip into calls gives the same result, either way."""

    def prepare(self) -> None:
        """Lay out weights as they are read fastest, once they are in place. Results change by rounding."""

    def fuse(self, ops: VAEOps) -> None:
        """Run on `ops` and channels-last from now on: for a GPU, once the weights are in place.

        They are prepared then. Results change by rounding; caches go on.
        """

    def start_encoding(self) -> ConvCache:
        """The cache of an encoder that has seen nothing."""

    def encode(self, frames: Tensor, cache: ConvCache) -> Encoded:
        """Encode the next pictures of a stream; `cache` stays valid, whatever happens.

        Args:
            frames: [B, N, 3, height, width] in 0..1, in the dtype of the weights; height and width are multiples
                of 8, N is 1+4k at the start of a stream and 4k later.
            cache: what `start_encoding` or the stream's last call returned.

        Raises:
            ValueError: the pictures have another number of axes or channels, or no whole latents.
            StreamError: N breaks its rule, or the cache belongs to another network, size, batch or dtype.
        """


class PictureEncoder(Protocol):
    """A streaming encoder of pictures to be restyled: any split of a clip into calls gives the same result."""

    def start_encoding(self) -> ConvCache:
        """The cache of an encoder that has seen nothing."""

    def encode_means(self, pixels: Tensor, cache: ConvCache) -> Encoded:
        """Latents as a network reads them that restyles pictures, of the next ones of a stream.

        Args:
            pixels: [B, N, 3, height, width] in -1..1, otherwise as those of `StreamingVAE.encode`.
            cache: what `start_encoding` or the stream's last call returned; it stays valid, whatever happens.

        Raises:
            ValueError: the pictures have another number of axes or channels, or no whole latents.
            StreamError: N breaks its rule, or the cache belongs to another network, size, batch or dtype.
        """


def check_latents(latents: Tensor, channels: int) -> None:
    """Raise ValueError unless `latents` is [B, T, channels, h, w] with at least one frame."""
    if latents.ndim != 5 or latents.shape[2] != channels or 0 in latents.shape:
        raise ValueError(f"latents {list(latents.shape)} are not [batch, frames, {channels}, height, width]")


def check_frames(frames: Tensor, *, at_start: bool) -> None:
    """Raise unless `frames` is [B, N, 3, H, W] with whole latents: ValueError for the shape, StreamError for N.

    `at_start` says that the stream's first frame, which is a latent frame by itself, is the first of these.
    """
    if frames.ndim != 5 or frames.shape[2] != 3 or 0 in frames.shape:
        raise ValueError(f"pictures {list(frames.shape)} are not [batch, frames, 3, height, width]")
    height, width = frames.shape[3:]
    if height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise ValueError(f"pictures of {height}x{width}; both must be multiples of {SPATIAL_FACTOR}")
    count = frames.shape[1]
    if at_start and count % TEMPORAL_FACTOR != 1:
        raise StreamError(f"{count} pictures at the start of a stream; they must be 1 + {TEMPORAL_FACTOR}k")
    if not at_start and count % TEMPORAL_FACTOR != 0:
        raise StreamError(f"{count} more pictures for a stream; they must be {TEMPORAL_FACTOR}k")


def use_fused_ops(codec: StreamingVAE, backends: KernelBackends) -> None:
    """Change `codec`, for good, to run as `backends` says."""
    if backends.decoder == "triton":
        # As for passes: the kernels bring Triton.
        from kernels.vae.fused import FUSED

        codec.fuse(FUSED)

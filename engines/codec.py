"""The interface between latents and pictures, met by the Wan VAE and by TAEHV."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from engines.history import History


class Decoded(NamedTuple):
    """Pictures [B, frames, 3, height, width] in 0..1, and the decoder's history after them."""

    frames: Tensor
    history: History


class Encoded(NamedTuple):
    """Latents [B, latent frames, channels, height/8, width/8], and the encoder's history after them."""

    latents: Tensor
    history: History


class Codec(Protocol):
    """A streaming autoencoder: any split of a clip into calls gives the same result.

    Latents are normalised, as the denoiser makes and reads them. n latent frames are 1 + 4(n-1) pixel frames
    at the start of a stream and 4n later.
    """

    @property
    def decoder_memory(self) -> int:
        """Latent frames after which nothing older can be seen in the decoder's history."""

    def start_decoding(self) -> History:
        """The history of a decoder that has seen nothing."""

    def decode(self, latents: Tensor, history: History) -> Decoded:
        """Decode the next latent frames [B, frames, channels, height/8, width/8] of a stream."""

    def start_encoding(self) -> History:
        """The history of an encoder that has seen nothing."""

    def encode(self, frames: Tensor, history: History) -> Encoded:
        """Encode the next pictures [B, frames, 3, height, width] in 0..1 of a stream."""

"""What all autoencoders here have in common: two streaming networks."""

from __future__ import annotations

from torch import nn

from engines.vae.causal_conv import StreamingNetwork
from engines.vae.conv_cache import ConvCache
from kernels.vae.ops import VAEOps


class StreamingCodec(nn.Module):
    """An encoder and a decoder of any number of streams, each of which has its own caches."""

    encoder: StreamingNetwork
    decoder: StreamingNetwork

    def prepare(self) -> None:
        """Lay out weights as they are read fastest; results change by rounding. See `StreamingNetwork.prepare`."""
        self.encoder.prepare()
        self.decoder.prepare()

    def fuse(self, ops: VAEOps) -> None:
        """Run on `ops` and channels-last from now on; results change by rounding. See `StreamingNetwork.fuse`."""
        self.encoder.fuse(ops)
        self.decoder.fuse(ops)

    @property
    def decoder_receptive_field(self) -> int:
        """Latent frames after which nothing older can be seen in the decoder's cache."""
        return self.decoder.receptive_field(0)

    def start_decoding(self) -> ConvCache:
        """The cache of a decoder that has seen nothing."""
        return self.decoder.start()

    def start_encoding(self) -> ConvCache:
        """The cache of an encoder that has seen nothing."""
        return self.encoder.start()

"""A stream's blocks decoded in their order, whatever the stream is of."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engines.errors import StreamError
from engines.streaming.state import Block
from engines.vae.conv_cache import ConvCache
from engines.vae.frame_decoder import FrameDecoder


class Decodable(Protocol):
    """What decoding needs of a stream, and changes."""

    decoder: ConvCache | None
    decoded_blocks: int

    def require_open(self) -> None:
        """Raise StreamError if the stream has been closed."""


def decode_block(decoder: FrameDecoder | None, stream: Decodable, block: Block) -> Tensor:
    """Pictures [frames, height, width, 3] uint8 on the CPU of the stream's next undecoded block.

    Raises StreamError for another one, and where there is no decoder.
    """
    stream.require_open()
    if decoder is None or stream.decoder is None:
        raise StreamError("this generator has no VAE; decode where there is one")
    if block.number != stream.decoded_blocks:
        raise StreamError(f"block {block.number} is not the next to decode; {stream.decoded_blocks} is")
    decoded = decoder.decode(block.latents, stream.decoder, block.ready)
    stream.decoder = decoded.cache
    stream.decoded_blocks += 1
    return decoded.frames[block.lead_in :]

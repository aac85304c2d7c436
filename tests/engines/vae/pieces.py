"""Running a codec over a clip in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.vae.protocol import StreamingDecoder, StreamingVAE

EXACT = 2e-5


def decode(codec: StreamingDecoder, pieces: tuple[Tensor, ...]) -> Tensor:
    cache, pictures = codec.start_decoding(), []
    for piece in pieces:
        frames, cache = codec.decode(piece, cache)
        pictures.append(frames)
    return torch.cat(pictures, dim=1)


def encode(codec: StreamingVAE, pieces: tuple[Tensor, ...]) -> Tensor:
    cache, latents = codec.start_encoding(), []
    for piece in pieces:
        encoded, cache = codec.encode(piece, cache)
        latents.append(encoded)
    return torch.cat(latents, dim=1)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)

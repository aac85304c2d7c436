"""Running a codec over a clip in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.vae.protocol import Codec

EXACT = 2e-5


def decode(codec: Codec, pieces: tuple[Tensor, ...]) -> Tensor:
    history, pictures = codec.start_decoding(), []
    for piece in pieces:
        frames, history = codec.decode(piece, history)
        pictures.append(frames)
    return torch.cat(pictures, dim=1)


def encode(codec: Codec, pieces: tuple[Tensor, ...]) -> Tensor:
    history, latents = codec.start_encoding(), []
    for piece in pieces:
        encoded, history = codec.encode(piece, history)
        latents.append(encoded)
    return torch.cat(latents, dim=1)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)

"""How much there is to compute for a block, in numbers that can be compared from one picture size to another."""

from __future__ import annotations

from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.networks import TransformerConfig
from engines.config.video_stream import AnyStreamConfig


def denoising_work(transformer: TransformerConfig, stream: AnyStreamConfig) -> int:
    """Multiply-adds of all passes of a block with the window full: linear layers, and attention over the window.

    Leaves out what hardly grows with the picture: cross-attention, embeddings, the head.
    """
    tokens, window = stream.block_frames * stream.frame_tokens, stream.window_frames * stream.frame_tokens
    linear = 6 * transformer.dim**2 + 2 * transformer.dim * transformer.ffn_dim
    attention = 2 * transformer.dim * window
    return stream.passes * tokens * transformer.layers * (linear + attention)


def decoding_work(stream: AnyStreamConfig) -> int:
    """Pixels of a block: decoding and encoding take a time that is proportional to them."""
    return TEMPORAL_FACTOR * stream.block_frames * stream.height * stream.width

"""How latents lie in pictures and in time: numbers that all networks share."""

from __future__ import annotations

SPATIAL_FACTOR = 8
"""Pixels per latent, along height and along width."""


TEMPORAL_FACTOR = 4
"""Pixel frames per latent frame, except for the first latent frame of a stream, which is one."""


FRAMES_PER_SECOND = 16
"""Pixel frames of a second."""


PATCH = 2
"""Latents per token, along height and along width."""


ABSOLUTE_POSITIONS = 1024
"""Frame positions that LongLive's table of absolute RoPE angles holds."""


def pixel_frames(latent_frames: int) -> int:
    """Pixel frames that the first `latent_frames` of a stream decode to."""
    return 0 if latent_frames == 0 else 1 + TEMPORAL_FACTOR * (latent_frames - 1)

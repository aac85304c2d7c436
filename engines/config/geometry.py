"""How latents lie in pictures and in time: numbers that all networks share."""

from __future__ import annotations

from typing import NamedTuple

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


class BlockLengths(NamedTuple):
    """Latent frames of a stream's blocks: of every later one, and of the first."""

    later: int = 3
    first: int = 3

    def frames_of(self, block: int, opening: int = 0) -> int:
        """Latent frames of a block, where the stream opened with block `opening`."""
        return self.first if block == opening else self.later

    def latent_frames(self, blocks: int) -> int:
        """Latent frames of the first `blocks`."""
        return 0 if blocks == 0 else self.first + (blocks - 1) * self.later

    def pixel_frames(self, blocks: int) -> int:
        """Pixel frames of the first `blocks`: where the next one begins."""
        return pixel_frames(self.latent_frames(blocks))

    def pixel_frames_of(self, block: int) -> int:
        """Pixel frames of a block."""
        return self.pixel_frames(block + 1) - self.pixel_frames(block)

    def blocks_of(self, latent_frames: int) -> int:
        """The fewest blocks that have so many latent frames."""
        return 0 if latent_frames <= 0 else 1 + max(0, -(-(latent_frames - self.first) // self.later))

    def block_at(self, frame: int) -> int:
        """The first block that begins at or after pixel frame `frame`."""
        return 0 if frame <= 0 else self.blocks_of(-(-(frame - 1) // TEMPORAL_FACTOR) + 1)

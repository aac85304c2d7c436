"""What every kind of stream has: a seed, the size of its pictures, and blocks of some frames and steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from engines.config.geometry import PATCH, SPATIAL_FACTOR, BlockLengths
from engines.config.validation import require


@dataclass(frozen=True)
class BaseStreamConfig(ABC):
    """How one stream is generated, as far as it does not matter what it is made from. Sizes are pixels."""

    seed: int = 0
    height: int = 480
    width: int = 832

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 64, f"seed {self.seed} is outside 0..2^64-1")
        multiple = SPATIAL_FACTOR * PATCH
        for name, pixels in (("height", self.height), ("width", self.width)):
            require(
                pixels >= multiple and pixels % multiple == 0,
                f"{name} {pixels} is not a positive multiple of {multiple}, the pixels of a token",
            )

    @property
    @abstractmethod
    def blocks(self) -> BlockLengths:
        """Latent frames of the stream's blocks."""

    @abstractmethod
    def steps_of(self, block: int) -> tuple[int, ...]:
        """The denoising steps of a block."""

    @property
    def rows(self) -> int:
        """Tokens along the height of a latent frame."""
        return self.height // (SPATIAL_FACTOR * PATCH)

    @property
    def columns(self) -> int:
        """Tokens along the width of a latent frame."""
        return self.width // (SPATIAL_FACTOR * PATCH)

    @property
    def frame_tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.rows * self.columns

    def latent_shape(self, channels: int, frames: int) -> tuple[int, int, int, int]:
        """Of latents: frames, channels, height, width."""
        return frames, channels, self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR

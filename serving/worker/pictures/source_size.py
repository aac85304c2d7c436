"""The size of the pictures that a sender sends, as they are shown, and when another one opens its video anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serving.media.clips.shown_frame import PictureSize

REOPENED_AFTER = 8
"""Blocks from one opening to the next, at least: whose size changes all the time costs little more than others."""


@dataclass(frozen=True)
class SourceSize:
    """With what size of pictures the video has opened at block `opening`; None where that is not known."""

    size: PictureSize | None = None
    opening: int = 0

    def changes(self, sizes: Iterable[PictureSize], block: int) -> bool:
        """Whether `block` is to open the video anew, whose pictures have these `sizes`.

        All have others than before: a block with some that have not belongs to what was there.
        """
        lasted = block - self.opening >= REOPENED_AFTER
        return self.size is not None and lasted and self.size not in sizes

    def after(self, last: PictureSize, block: int, *, opens: bool) -> SourceSize:
        """Once `block` has begun, whose last picture has the size `last`."""
        return SourceSize(last, block) if opens or self.size is None else self

"""Decoded frames of any size, pixel format and orientation become RGB pictures of one size."""

from __future__ import annotations

from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from serving.media.clips.shown_frame import Picture, ShownFrame

Fit = Literal["fit", "fill", "stretch"]
"""Whole between black bars, or cropped around its centre, or at another aspect ratio."""

HIGH_DEFINITION_LINES = 720
"""From this height on, video that does not name its matrix is taken for BT.709, below it for BT.601."""

UNSPECIFIED_MATRIX = 2

FILTER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


class PictureScaler:
    """Makes pictures [height, width, 3] of frames of any size.

    A frame's own matrix and range are applied, its transfer function is not: HDR stays as it is encoded. What lies
    behind a transparent frame is black.
    """

    def __init__(self, height: int, width: int, fit: Fit) -> None:
        self._height, self._width, self.fit = height, width, fit
        self._reformatter = VideoReformatter()

    def picture(self, shown: ShownFrame) -> Picture:
        """A frame as it is shown, in RGB."""
        height, width = self._scaled_size(shown)
        size = (width, height) if shown.orientation.transposed else (height, width)
        return self._placed(shown.orientation.turned(self._rgb(_opaque(shown.frame), *size)))

    def _scaled_size(self, shown: ShownFrame) -> tuple[int, int]:
        """Height and width of the whole frame in the picture, as it is shown."""
        if self.fit == "stretch":
            return self._height, self._width
        height, width = shown.sides
        scales = self._height / height, self._width / width
        scale = min(scales) if self.fit == "fit" else max(scales)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _rgb(self, frame: VideoFrame, height: int, width: int) -> Picture:
        made = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=_matrix(frame),
            interpolation=FILTER,
            dst_color_range=ColorRange.JPEG,
        )
        return made.to_ndarray().astype(np.uint8, copy=False)

    def _placed(self, scaled: Picture) -> Picture:
        """The centre of what is larger than the picture, amid black where it is smaller."""
        top, left = self._height - scaled.shape[0], self._width - scaled.shape[1]
        inner = scaled[max(0, -top // 2) :, max(0, -left // 2) :][: self._height, : self._width]
        if inner.shape[:2] == (self._height, self._width):
            return np.ascontiguousarray(inner)
        picture = np.zeros((self._height, self._width, 3), np.uint8)
        picture[max(0, top // 2) :, max(0, left // 2) :][: inner.shape[0], : inner.shape[1]] = inner
        return picture


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """The matrix to take for a frame that names none."""
    if frame.colorspace != UNSPECIFIED_MATRIX or frame.format.is_rgb:
        return None
    return Colorspace.ITU709 if frame.height >= HIGH_DEFINITION_LINES else Colorspace.ITU601


def _opaque(frame: VideoFrame) -> VideoFrame:
    """A frame before black, in RGB, if it may be transparent."""
    if not (frame.format.has_palette or any(part.is_alpha for part in frame.format.components)):
        return frame
    made = frame.reformat(
        format="rgba", src_colorspace=_matrix(frame), dst_color_range=ColorRange.JPEG
    ).to_ndarray()
    colors, alpha = made[..., :3], made[..., 3:].astype(np.uint16)
    return VideoFrame.from_ndarray((colors * alpha // 255).astype(np.uint8), "rgb24")

"""Decoded frames of any size, pixel format and orientation become RGB pictures of one size."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple, Self

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

Fit = Literal["fit", "fill", "stretch"]
"""Whole between black bars, or cropped around its centre, or at another aspect ratio."""

Picture = NDArray[np.uint8]

HIGH_DEFINITION_LINES = 720
"""From this height on, video that does not name its matrix is taken for BT.709, below it for BT.601."""

UNSPECIFIED_MATRIX = 2

FILTER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


class PictureSize(NamedTuple):
    """In pixels."""

    height: int
    width: int

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """Of a frame, as it is shown."""
        size = cls(frame.height, frame.width)
        return cls(*size[::-1]) if Orientation.of(frame).transposed else size


class Orientation(NamedTuple):
    """How a frame is turned to be shown: first transposed, then mirrored."""

    transposed: bool = False
    mirrored_rows: bool = False
    mirrored_columns: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """What the display matrix of a frame asks for, in quarter turns and mirrors; upright without one."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(data, SideData):
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, b < 0, c < 0)
        return cls(False, d < 0, a < 0)

    def turned(self, picture: Picture) -> Picture:
        """A picture as it is shown."""
        turned = picture.swapaxes(0, 1) if self.transposed else picture
        return turned[:: -1 if self.mirrored_rows else 1, :: -1 if self.mirrored_columns else 1]


class PictureScaler:
    """Makes pictures [height, width, 3] of frames whose pixels have the aspect ratio `pixel_aspect`.

    A frame's own matrix and range are applied, its transfer function is not: HDR stays as it is encoded.
    """

    def __init__(self, height: int, width: int, fit: Fit, pixel_aspect: Fraction = Fraction(1)) -> None:
        self._height, self._width, self.fit = height, width, fit
        self._pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> Picture:
        """A frame as it is shown, in RGB."""
        orientation = Orientation.of(frame)
        height, width = self._scaled_size(frame, orientation)
        size = (width, height) if orientation.transposed else (height, width)
        return self._placed(orientation.turned(self._rgb(frame, *size)))

    def _scaled_size(self, frame: VideoFrame, orientation: Orientation) -> tuple[int, int]:
        """Height and width of the whole frame in the picture, as it is shown."""
        if self.fit == "stretch":
            return self._height, self._width
        height, width = Fraction(frame.height), frame.width * self._pixel_aspect
        if orientation.transposed:
            height, width = width, height
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

"""How a decoded frame is shown: turned, and as wide as its pixels are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Self

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

MOST_ELONGATED = 16
"""How many times its other side one side of a frame may be: what is cropped of it is scaled before."""

UNNAMED_SIDE_DATA = range(28, 32)
"""Kinds of what frames carry, such as Exif, that libavutil knows and PyAV has no name for."""

Picture = NDArray[np.uint8]


class PictureSize(NamedTuple):
    """In pixels."""

    height: int
    width: int


class Orientation(NamedTuple):
    """How a frame is turned to be shown: first transposed, then mirrored."""

    transposed: bool = False
    mirrored_rows: bool = False
    mirrored_columns: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """What the display matrix of a frame asks for, in quarter turns and mirrors; upright without one."""
        data = _display_matrix(frame)
        if data is None:
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, b < 0, c < 0)
        return cls(False, d < 0, a < 0)

    def turned(self, picture: Picture) -> Picture:
        """A picture as it is shown."""
        turned = picture.swapaxes(0, 1) if self.transposed else picture
        return turned[:: -1 if self.mirrored_rows else 1, :: -1 if self.mirrored_columns else 1]


class ShownFrame(NamedTuple):
    """A decoded frame and how it is shown: turned, of pixels that are `pixel_aspect` times as wide as high."""

    frame: VideoFrame
    orientation: Orientation = Orientation()
    pixel_aspect: Fraction = Fraction(1)

    @property
    def sides(self) -> tuple[Fraction, Fraction]:
        """Height and width as it is shown, in square pixels."""
        height, width = Fraction(self.frame.height), self.frame.width * self.pixel_aspect
        return (width, height) if self.orientation.transposed else (height, width)

    @property
    def size(self) -> PictureSize:
        """The same in whole pixels."""
        height, width = self.sides
        return PictureSize(max(1, round(height)), max(1, round(width)))

    @property
    def problem(self) -> str | None:
        """Why it cannot be shown, where it cannot."""
        if max(self.sides) <= MOST_ELONGATED * min(self.sides):
            return None
        ratio = f"{self.pixel_aspect.numerator}:{self.pixel_aspect.denominator}"
        remedy = "crop it" if self.pixel_aspect == 1 else f"correct the aspect ratio of its pixels, {ratio}"
        height, width = self.size
        return f"shown as {width}x{height}; one side may be at most {MOST_ELONGATED} times the other: {remedy}"


class ShownFrames:
    """Says how the frames of one stream are shown, of which the file states `pixel_aspect`, if it states any.

    That holds until the stream itself says another than `own`, at one of its key frames. A decoder tells that of
    what it has read last, while frames that are shown before it may be still to come out.
    """

    def __init__(self, pixel_aspect: Fraction | None = None, own: Fraction | None = None) -> None:
        self._pixel_aspect, self._own = pixel_aspect or own or Fraction(1), own

    def of(self, frames: Sequence[VideoFrame], decoder: VideoCodecContext) -> list[ShownFrame]:
        """Those that have come out of the decoder together."""
        keys = [number for number, frame in enumerate(frames) if frame.key_frame]
        shown = []
        for number, frame in enumerate(frames):
            if keys and number == keys[-1] and decoder.sample_aspect_ratio != self._own:
                self._own = decoder.sample_aspect_ratio
                self._pixel_aspect = self._own or Fraction(1)
            shown.append(ShownFrame(frame, Orientation.of(frame), self._pixel_aspect))
        return shown


def _display_matrix(frame: VideoFrame) -> SideData | None:
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        data = _with_named_side_data(frame).side_data.get("DISPLAYMATRIX")
    return data if isinstance(data, SideData) else None


def _with_named_side_data(frame: VideoFrame) -> VideoFrame:
    """A frame without what PyAV cannot list: its list fails for all of them."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    without = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in UNNAMED_SIDE_DATA]
    graph.link_nodes(source, *without, graph.add("buffersink")).configure()
    graph.push(frame)
    left = graph.pull()
    assert isinstance(left, VideoFrame)
    return left

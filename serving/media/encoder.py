"""Pictures become chunks: one H.264 encode, which viewers, recordings and films share."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from serving.errors import FilmError
from serving.media.chunk import FRAMES_PER_SECOND, AccessUnit, Chunk
from serving.media.h264 import SEI, join_units, split_units, unit_type

CodecChoice = Literal["libx264", "h264_nvenc"]
EncoderChoice = Literal["auto", "libx264", "h264_nvenc"]

OPTIONS: dict[CodecChoice, dict[str, str]] = {
    "libx264": {
        "preset": "veryfast",
        "tune": "zerolatency",
        "crf": "18",
        # The first frame of a chunk is its only key.
        "g": "1000000",
        "sc_threshold": "0",
        # One thread is one slice: the bytes do not depend on the machine's cores.
        "threads": "1",
    },
    "h264_nvenc": {
        "preset": "p4",
        "tune": "ull",
        "rc": "constqp",
        "qp": "20",
        "bf": "0",
        "delay": "0",
        "g": "1000000",
        "no-scenecut": "1",
        "forced-idr": "1",
    },
}

_REMEDY = "h264_nvenc needs an NVIDIA GPU that encodes, libx264 an even height and width"

_TIME_BASE = Fraction(1, FRAMES_PER_SECOND)


def chosen(asked: EncoderChoice, *, graphics: bool) -> CodecChoice:
    """The encoder to use. "auto" is the graphics card's where `graphics` says there is one and it encodes.

    Not every NVIDIA GPU does: those for data centres (A100, H100, H200) have no encoder.
    """
    if asked != "auto":
        return asked
    return "h264_nvenc" if graphics and opens("h264_nvenc") else "libx264"


def opens(codec: CodecChoice) -> bool:
    """Whether this machine has the encoder."""
    try:
        ChunkEncoder(256, 256, codec).close()
    except FilmError:
        return False
    return True


class ChunkEncoder:
    """Encodes pictures of one size. A chunk is a closed group of pictures; decoding can begin at any.

    With libx264 the bytes of a chunk depend on its pictures alone, for an encoder is made anew for each. A
    hardware encoder takes too long to open for that: what came before may show in its chunks. Raises FilmError
    where there is no such encoder.
    """

    def __init__(self, height: int, width: int, codec: CodecChoice = "libx264") -> None:
        self._height, self._width, self._codec = height, width, codec
        self._kept = None if codec == "libx264" else self._open()
        self._kept_frames = 0

    def encode(self, block: int, first_frame: int, pictures: NDArray[np.uint8]) -> Chunk:
        """The chunk of `block`, whose pictures [frames, height, width, 3] begin at `first_frame`.

        Raises ValueError for pictures of another shape, FilmError where the encoder fails.
        """
        shape = (self._height, self._width, 3)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != shape or len(pictures) == 0:
            expected = f"uint8 [frames, {self._height}, {self._width}, 3]"
            raise ValueError(f"pictures are {pictures.dtype} {list(pictures.shape)}, not {expected}")
        try:
            packets = self._packets(pictures)
        except av.FFmpegError as error:
            raise FilmError(f"{self._codec} failed at block {block}: {error.strerror}") from error
        if len(packets) != len(pictures):
            raise FilmError(
                f"{self._codec} made {len(packets)} units of the {len(pictures)} frames of block {block}"
            )
        return Chunk(block, first_frame, tuple(_unit(bytes(packet), packet.is_keyframe) for packet in packets))

    def close(self) -> None:
        """Free a hardware encoder at once; nothing can be encoded any more."""
        self._kept = None

    def _packets(self, pictures: NDArray[np.uint8]) -> list[Packet[Stream]]:
        context, start = self._kept or self._open(), self._kept_frames
        frames = [_frame(picture, start + number) for number, picture in enumerate(pictures)]
        frames[0].pict_type = PictureType.I
        packets = [packet for frame in frames for packet in context.encode(frame)]
        if self._kept is None:
            return packets + context.encode(None)
        self._kept_frames += len(frames)
        return packets

    def _open(self) -> VideoCodecContext:
        try:
            context: VideoCodecContext = av.CodecContext.create(self._codec, "w")
        except UnknownCodecError as error:
            raise FilmError(f"{self._codec} is not in av here; install av from its wheels") from error
        context.height, context.width = self._height, self._width
        context.pix_fmt = "yuv420p"
        context.time_base, context.framerate = _TIME_BASE, Fraction(FRAMES_PER_SECOND)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.options = OPTIONS[self._codec]
        try:
            context.open()
        except av.FFmpegError as error:
            size = f"{self._height}x{self._width}"
            raise FilmError(f"{self._codec} does not open for {size} here: {error.strerror}; {_REMEDY}") from error
        return context


def _frame(picture: NDArray[np.uint8], pts: int) -> VideoFrame:
    frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
    frame.pts, frame.time_base, frame.pict_type = pts, _TIME_BASE, PictureType.NONE
    return frame


def _unit(data: bytes, key: bool) -> AccessUnit:
    """Without the messages in which encoders name themselves: 700 bytes in every chunk."""
    return AccessUnit(join_units(unit for unit in split_units(data) if unit_type(unit) != SEI), key)

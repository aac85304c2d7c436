"""Pictures as clients send them."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from numpy.typing import NDArray
from PIL import Image

from serving.pb.longtake.v1 import sessions_pb2 as pb

Picture = NDArray[np.uint8]


def picture(number: int, height: int = 96, width: int = 160) -> Picture:
    """A bright square on dark ground that goes to the right."""
    made = np.full((height, width, 3), 30, np.uint8)
    left = 4 * number % (width - 24)
    made[height // 3 : height // 3 + 24, left : left + 24] = (220, 90, 40)
    return made


def encoded(made: Picture, kind: str = "PNG", quality: int = 95) -> bytes:
    data = io.BytesIO()
    Image.fromarray(made).save(data, kind, quality=quality)
    return data.getvalue()


def png(number: int, height: int = 96, width: int = 160, time_us: int | None = None) -> pb.Command:
    """A command with a picture, of those at 16 a second."""
    at = 62_500 * number if time_us is None else time_us
    data = encoded(picture(number, height, width))
    return pb.Command(picture=pb.Picture(id=1000 + number, time_us=at, format=pb.PICTURE_FORMAT_PNG, data=data))


def h264(
    pictures: int, key_every: int = 30, height: int = 96, width: int = 160, rate: int = 30,
    pixel_aspect: Fraction = Fraction(1), crop: str = "0,0,0,0",
) -> list[bytes]:  # fmt: skip
    """Access units as a camera sends them, without B frames."""
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.sample_aspect_ratio = Fraction(rate), pixel_aspect
    context.options = {
        "tune": "zerolatency", "g": "100000", "preset": "veryfast", "x264-params": f"crop-rect={crop}",
    }  # fmt: skip
    units = []
    for number in range(pictures):
        frame = VideoFrame.from_ndarray(picture(number, height, width), format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        frame.pict_type = PictureType.I if number % key_every == 0 else PictureType.NONE
        units += [bytes(packet) for packet in context.encode(frame)]
    return units

"""Video files for tests: frame n of a clip is one level of gray, 20 + 3 n, unless it is drawn otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from serving.media.clips.clip_reader import open_clip

HEIGHT, WIDTH = 64, 96

QUALITY = {"libx264": {"crf": "4"}, "libx265": {"crf": "4", "x265-params": "log-level=error"}}

Pictures = NDArray[np.uint8]


def gray(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[Pictures]:
    """Frames whose level tells their number."""
    return [np.full((height, width, 3), 20 + 3 * n, np.uint8) for n in range(count)]


def quadrants() -> Pictures:
    """Red and green above blue and white: no two ways to turn it look the same."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:32, :48, 0] = picture[:32, 48:, 1] = picture[32:, :48, 2] = 255
    picture[32:, 48:] = 255
    return picture


def write_clip(
    path: Path,
    pictures: Sequence[Pictures],
    rate: Fraction | int = 24,
    *,
    times_ms: Iterable[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    matrix: Colorspace = Colorspace.ITU601,
    full_range: bool = False,
    turned: tuple[int, bool, bool] | None = None,
    pixel_aspect: Fraction | None = None,
    audio_s: float = 0,
    audio_codec: str = "aac",
) -> Path:
    """A clip of `pictures` at a rate, or each at its time; `turned` is an angle and two mirrors."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=QUALITY.get(codec, {}))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        stream.codec_context.colorspace = 6 if matrix is Colorspace.ITU601 else int(matrix)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if turned is not None:
            stream.set_display_rotation(turned[0], hflip=turned[1], vflip=turned[2])
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(audio_codec, rate=48000) if audio_s else None
        assert sound is None or isinstance(sound, AudioStream)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
                format=pixels, dst_colorspace=matrix,
                dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
            )  # fmt: skip
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            if times_ms is not None:
                frame.pts, frame.time_base = list(times_ms)[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            wave = np.sin(np.arange(round(audio_s * 48000)) * 2 * np.pi * 440 / 48000).astype(np.float32) / 2
            for start in range(0, len(wave), 1024):
                block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                block.sample_rate, block.pts = 48000, start
                for part in av.AudioResampler(sound.format, sound.layout, 48000).resample(block):
                    container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return path


class Part(NamedTuple):
    """A second of a clip, 24 bright frames of one size and aspect ratio of their pixels."""

    height: int
    width: int
    pixel_aspect: Fraction | None = None

    def packets(self) -> Iterator[av.Packet[VideoStream]]:
        """Encoded as a stream of its own, some frames after those that are shown after them."""
        context = av.CodecContext.create("libx264", "w")
        assert isinstance(context, av.VideoCodecContext)
        context.height, context.width, context.pix_fmt = self.height, self.width, "yuv420p"
        context.framerate, context.options = Fraction(24), {"bf": "3", "b-adapt": "0"}
        if self.pixel_aspect is not None:
            context.sample_aspect_ratio = self.pixel_aspect
        for picture in gray(1, self.height, self.width) * 24:
            frame = av.VideoFrame.from_ndarray(picture + 180, "rgb24").reformat(format="yuv420p")
            yield from context.encode(frame)
        yield from context.encode(None)


def write_joined(path: Path, *parts: Part) -> Path:
    """A clip whose one stream is these, one after the other."""
    numbers = count()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = parts[0].height, parts[0].width, "yuv420p"
        for start, part in enumerate(parts):
            for packet in part.packets():
                number = next(numbers)
                joined = av.Packet(bytes(packet))
                joined.is_keyframe, joined.stream, joined.time_base = packet.is_keyframe, stream, Fraction(1, 24)
                assert packet.pts is not None
                joined.dts, joined.pts = number, 24 * start + packet.pts + 3
                container.mux(joined)
    return path


def levels(path: Path) -> list[int]:
    """The number of the frame that each picture of a clip shows."""
    with open_clip(path, HEIGHT, WIDTH) as clip:
        return [round((float(picture.mean()) - 20) / 3) for picture in clip]

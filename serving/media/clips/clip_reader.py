"""A video file as pictures of one size, sixteen a second, read no further than they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from serving.errors import ClipError
from serving.media.chunk import FRAMES_PER_SECOND
from serving.media.clips.picture_scaler import Fit, PictureScaler
from serving.media.clips.shown_frame import Orientation, Picture, ShownFrame, ShownFrames

LONGEST_STILL_S = 600
"""A frame that seems to stay for longer has a broken time, and is taken to stay for one frame."""

MISSING_S = 0.5
"""A clip that ends this much before its stated end has been cut off."""

WITHOUT_SHOWING_TIMES = "avi"
"""The format that only says in which order frames are decoded."""

ANIMATED_TEXT = "tty"
"""The format of text files, which are no clips."""


@dataclass(frozen=True)
class ClipLimits:
    """What a clip may ask of the machine that reads it."""

    max_pixels: int = 8192 * 4320
    """Of one frame."""
    max_bytes: int = 64 << 30
    """Of the file."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")


@dataclass(frozen=True)
class ClipFacts:
    """What a clip is: its size as it is shown, and what its file states."""

    height: int
    width: int
    rate: Fraction | None
    """Frames a second on average, where the file says so."""
    duration_s: float | None
    """Of the video, where the file says so."""
    orientation: Orientation
    has_audio: bool
    start_s: Fraction
    """When the first picture is shown, on the clip's own clock."""


class Shown(NamedTuple):
    """A frame, and from when to when it is shown, in seconds after the first."""

    frame: ShownFrame
    start: Fraction
    end: Fraction


def open_clip(
    path: Path, height: int, width: int, fit: Fit = "fill", limits: ClipLimits | None = None
) -> ClipReader:
    """Open a video file for pictures of `height` x `width`. Raises ClipError where it has none to read."""
    return ClipReader(path, height, width, fit, limits or ClipLimits())


class ClipReader:
    """The pictures of a clip, [height, width, 3] uint8 in RGB, once through.

    Picture k is the frame shown k/16 s after the first; one that stays is the same array again. Each is fitted
    from its own size, of which a clip may have several. Broken frames are left out. `warnings` says, once the
    pictures are read, what could not be. Iterating raises ClipError if a later frame is beyond the limits.
    """

    def __init__(self, path: Path, height: int, width: int, fit: Fit, limits: ClipLimits) -> None:
        self._path, self._limits = path, limits
        self._warnings: list[str] = []
        self._broken = 0
        self._container = _opened(path, limits)
        try:
            self._stream = _video(path, self._container)
            decoder = self._stream.codec_context
            self._require_pixels(decoder.width, decoder.height)
            # Else what is cropped on the left, at other than every 32nd pixel, is shown.
            decoder.options = {"max_pixels": str(limits.max_pixels), "flags": "+unaligned"}
            self._stream.thread_type = "AUTO"
            self._scaler = PictureScaler(height, width, fit)
            frames = self._frames()
            first = next(frames, None)
            if first is None:
                raise ClipError(f"{path} has no frame that can be decoded; give a clip that plays")
            self._decoded = chain((first,), frames)
            self.facts = self._facts(first)
        except BaseException:
            self._container.close()
            raise

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of what has been read so far."""
        return tuple(self._warnings)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        end = Fraction(0)
        for shown in self._shown():
            end = shown.end
            after = max(math.ceil(end * FRAMES_PER_SECOND), 1)
            if number < after:
                picture = self._scaler.picture(shown.frame)
                for _ in range(number, after):
                    yield picture
                number = after
        self._warn(float(end))

    def _shown(self) -> Iterator[Shown]:
        """Every frame, until the next one is shown; the last for its own duration."""
        before, start = next(self._decoded, None), Fraction(0)
        if before is None:
            return
        for frame in self._decoded:
            end = start + self._step(before.frame, frame.frame)
            yield Shown(before, start, end)
            before, start = frame, end
        yield Shown(before, start, start + self._duration(before.frame))

    def _step(self, before: VideoFrame, frame: VideoFrame) -> Fraction:
        """Seconds between two frames; of one whose time is missing or out of order, those of one frame."""
        earlier, later = self._time(before), self._time(frame)
        if earlier is None or later is None or not 0 <= later - earlier <= LONGEST_STILL_S:
            return self._duration(before)
        return later - earlier

    def _time(self, frame: VideoFrame) -> Fraction | None:
        """When a frame is shown, in seconds of the clip's clock, if it says so."""
        ticks = frame.dts if self._container.format.name == WITHOUT_SHOWING_TIMES else frame.pts
        return None if ticks is None or frame.time_base is None else ticks * frame.time_base

    def _duration(self, frame: VideoFrame) -> Fraction:
        if frame.duration and frame.time_base:
            stated = frame.duration * frame.time_base
            if 0 < stated <= LONGEST_STILL_S:
                return stated
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(FRAMES_PER_SECOND)
        return 1 / rate

    def _frames(self) -> Iterator[ShownFrame]:
        """Every frame that can be decoded, in the order in which they are shown."""
        packets, decoder = self._container.demux(self._stream), self._stream.codec_context
        ways = ShownFrames(self._stream.sample_aspect_ratio, decoder.sample_aspect_ratio)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                decoded = packet.decode()
            except av.EOFError:
                return
            except av.InvalidDataError:
                self._broken += 1
                continue
            except (av.FFmpegError, OSError) as error:
                raise ClipError(f"{self._path} cannot be read any further: {error.strerror}") from error
            for shown in ways.of([frame for frame in decoded if isinstance(frame, VideoFrame)], decoder):
                if not shown.frame.is_corrupt:
                    self._require_size(shown)
                    yield shown

    def _require_size(self, shown: ShownFrame) -> None:
        self._require_pixels(shown.frame.width, shown.frame.height)
        if shown.problem is not None:
            raise ClipError(f"{self._path} has a frame that is {shown.problem}")

    def _require_pixels(self, width: int, height: int) -> None:
        most = self._limits.max_pixels
        if width * height > most:
            raise ClipError(
                f"{self._path} has frames of {width}x{height}, {width * height} pixels; "
                f"at most {most} are read: make them smaller"
            )

    def _facts(self, first: ShownFrame) -> ClipFacts:
        return ClipFacts(
            *first.size,
            self._stream.average_rate,
            _stated_duration_s(self._container, self._stream),
            first.orientation,
            bool(self._container.streams.audio),
            self._time(first.frame) or Fraction(0),
        )

    def _warn(self, end_s: float) -> None:
        stated = self.facts.duration_s
        if self._broken:
            self._warnings.append(f"{self._path} is damaged: {self._broken} of its packets were left out")
        if stated is not None and end_s < stated - MISSING_S:
            self._warnings.append(
                f"{self._path} ends early, at {end_s:.2f} s of {stated:.2f} s: the file is cut off or damaged"
            )


def _opened(path: Path, limits: ClipLimits) -> InputContainer:
    if path.is_dir():
        raise ClipError(f"{path} is a directory; name a video file")
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise ClipError(f"{path} has {size} bytes; at most {limits.max_bytes} are read: cut it into parts")
        # What a playlist names is read from this machine or not at all.
        container = av.open(f"file:{path}", "r", options={"protocol_whitelist": "file"})
    except FileNotFoundError as error:
        raise ClipError(f"{path} does not exist; name a video file") from error
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path} cannot be read as a video: {error.strerror}; name a video file") from error
    if container.format.name == ANIMATED_TEXT:
        container.close()
        raise ClipError(f"{path} is a text; name a video file")
    return container


def _video(path: Path, container: InputContainer) -> VideoStream:
    """The stream to show. The cover of a piece of music is none."""
    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not streams:
        held = "only audio" if container.streams.audio else "nothing to show"
        raise ClipError(f"{path} has {held} in it; name a file with a video stream")
    return streams[0]


def _stated_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None

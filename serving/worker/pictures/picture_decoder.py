"""Pictures as they were sent become frames."""

from __future__ import annotations

from typing import Literal, NamedTuple

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

from serving.media.clips.shown_frame import ShownFrame, ShownFrames
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import check_picture

PictureFormat = Literal["jpeg", "png", "h264"]

CODECS: dict[PictureFormat, str] = {"jpeg": "mjpeg", "png": "png", "h264": "h264"}

FORMATS: dict[int, PictureFormat] = {
    pb.PICTURE_FORMAT_JPEG: "jpeg",
    pb.PICTURE_FORMAT_PNG: "png",
    pb.PICTURE_FORMAT_H264: "h264",
}

MOST_PIXELS = 3840 * 2160
"""Of one picture."""

MOST_REORDERED = 16
"""Units whose frames come later, at most, as H.264 has it (A.3.1): of those before, none comes any more."""

UNDECODED = {
    "jpeg": f"cannot be decoded as JPEG: send whole ones, of at most {MOST_PIXELS} pixels",
    "png": f"cannot be decoded as PNG: send whole ones, of at most {MOST_PIXELS} pixels",
    "h264": (
        f"cannot be decoded as H.264: send whole access units, of at most {MOST_PIXELS} pixels, "
        "from a key frame with its parameter sets on"
    ),
}
"""What is wrong with a picture, and what to do."""


class SentPicture(NamedTuple):
    """A picture as it came.

    Args:
        id: by which its sender knows it.
        time_us: when it was taken, on the sender's clock.
        format: how it is encoded.
        data: a file, or an access unit of H.264.
        arrived: when it came, on the clock of who takes it.
        is_behind_loss: whether pictures before it are missing.

    """

    id: int
    time_us: int
    format: PictureFormat
    data: bytes
    arrived: float
    is_behind_loss: bool = False


class DecodedPicture(NamedTuple):
    """A picture that can be shown."""

    sent: SentPicture
    shown: ShownFrame


def read_picture(command: pb.Command, now: float) -> SentPicture | None:
    """The picture that a controller sends; None where it says that no more come.

    Raises InvalidRequest for an unknown format, and for too many bytes, or none.
    """
    if command.HasField("end_input"):
        return None
    picture = command.picture
    check_picture(picture)
    return SentPicture(picture.id, picture.time_us, FORMATS[picture.format], picture.data, now)


class PictureDecoder:
    """Decodes the pictures of one session, in their order. What cannot be decoded gives none.

    Units of H.264 that need one that is missing give none either, up to the next key frame. `problem` says of the
    last picture why it gives none, and what to do; it is empty where it gives one.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._h264: VideoCodecContext | None = None
        self._ways = ShownFrames()
        self._waiting: dict[int, SentPicture] = {}
        self._number = 0

    def decode(self, sent: SentPicture) -> list[DecodedPicture]:
        """The pictures that can be shown now that `sent` is here."""
        try:
            made = self._streamed(sent) if sent.format == "h264" else self._by_itself(sent)
        except (av.FFmpegError, ValueError):
            self._forget_stream()
            made = []
        problems = [_problem(picture) for picture in made]
        shown = [picture for picture, problem in zip(made, problems, strict=True) if problem is None]
        self.problem = "" if shown else f"a picture {next(iter(problems), None) or UNDECODED[sent.format]}"
        return shown

    def _by_itself(self, sent: SentPicture) -> list[DecodedPicture]:
        self._forget_stream()
        decoder = _opened(sent.format)
        frames = [*decoder.decode(Packet(sent.data)), *decoder.decode(None)]
        return [DecodedPicture(sent, shown) for shown in ShownFrames().of(frames[:1], decoder)]

    def _streamed(self, sent: SentPicture) -> list[DecodedPicture]:
        if sent.is_behind_loss:
            self._forget_stream()
        if self._h264 is None:
            self._h264, self._ways = _opened("h264"), ShownFrames()
        packet = Packet(sent.data)
        packet.pts = packet.dts = self._number
        self._waiting[self._number] = sent._replace(data=b"")
        self._waiting.pop(self._number - MOST_REORDERED - 1, None)
        self._number += 1
        made = self._ways.of(self._h264.decode(packet), self._h264)
        shown = [(number, one) for one in made if (number := one.frame.pts) in self._waiting]
        pictures = [DecodedPicture(self._waiting[number], one) for number, one in shown]
        newest = max((number for number, _ in shown), default=-1)
        self._waiting = {number: unit for number, unit in self._waiting.items() if number > newest}
        return pictures

    def _forget_stream(self) -> None:
        self._h264 = None
        self._waiting.clear()


def _opened(picture_format: PictureFormat) -> VideoCodecContext:
    context = av.CodecContext.create(CODECS[picture_format], "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    # Unaligned: else what is cropped on the left, at other than every 32nd pixel, is shown.
    context.options = {"max_pixels": str(MOST_PIXELS), "flags": "+low_delay+unaligned"}
    return context


def _problem(picture: DecodedPicture) -> str | None:
    """Why it cannot be shown, where it cannot."""
    frame, problem = picture.shown.frame, picture.shown.problem
    if frame.is_corrupt or frame.width * frame.height > MOST_PIXELS:
        return UNDECODED[picture.sent.format]
    return problem and f"is {problem}"

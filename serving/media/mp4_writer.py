"""Chunks become an MP4 file, as they are: nothing is encoded again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from serving.errors import FilmError
from serving.media.chunk import FRAMES_PER_SECOND, AccessUnit, Chunk
from serving.media.fmp4 import Fragments, boxes
from serving.media.h264 import sample
from serving.media.whole_file import put_in_place, whole_file

OPTIONS = {
    # Finished chunks can be played even if the process dies.
    "movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags",
    "flush_packets": "1",
}

COPY_OPTIONS = {"movflags": "faststart+use_metadata_tags"}

OF_THE_MUXER = ("major_brand", "minor_version", "compatible_brands", "encoder")
"""Metadata that a muxer writes by itself."""

_TIME_BASE = Fraction(1, FRAMES_PER_SECOND)


class Mp4:
    """An MP4 file being written in fragments, whose time begins with `first_frame`. `tags` go into its metadata.

    `finish` makes an ordinary one of it. It is `whole` unless something was refused. Every method raises FilmError
    where the file cannot be written.
    """

    def __init__(self, path: Path, height: int, width: int, first_frame: int, tags: Mapping[str, str]) -> None:
        self._path, self._height, self._width = path, height, width
        self._stream: VideoStream | None = None
        self.whole = True
        self.first_frame, self.frames = first_frame, 0
        with writing(path):
            # Opened here and now: the library would leave it to the first chunk.
            self._file = path.open("wb", buffering=0)
            self._container = av.open(self._file, "w", format="mp4", options=OPTIONS)
        self._container.metadata.update(tags)

    def append(self, chunk: Chunk) -> None:
        """Write the chunk that follows. Raises FilmError as well if it is another one, or another encoder's."""
        if chunk.first_frame != (expected := self.first_frame + self.frames):
            raise FilmError(f"{self._path} goes on with frame {expected}; the chunk begins at {chunk.first_frame}")
        self.whole = False
        with writing(self._path):
            stream = self._stream = self._stream or self._begin(chunk)
            for unit in chunk.units:
                self._container.mux(_packet(unit, self.frames, stream))
                self.frames += 1
        self.whole = True

    def close(self) -> None:
        """Close the file; one without a frame is taken away, and one that is not whole is cut."""
        if not self.whole:
            self.abandon()
            return
        with writing(self._path), self._file:
            if self.frames == 0:
                if self._path.is_file():
                    self._path.unlink()
                return
            self._container.close()

    def abandon(self) -> None:
        """Close the file as it is, once something was refused, and cut off what is not whole."""
        self.whole = False
        with writing(self._path):
            self._file.close()
            cut_to_whole(self._path)

    def _begin(self, chunk: Chunk) -> VideoStream:
        """Muxers learn what they write from a stream that was read: the chunk's own."""
        fragments = Fragments(chunk, self._height, self._width)
        with av.open(io.BytesIO(fragments.init + fragments.segment(chunk)), "r") as container:
            stream = self._container.add_stream_from_template(container.streams.video[0], opaque=True)
        stream.time_base = _TIME_BASE
        return stream


def _packet(unit: AccessUnit, pts: int, stream: VideoStream) -> Packet[Stream]:
    packet = Packet(sample(unit))
    packet.stream, packet.time_base = stream, _TIME_BASE
    packet.pts = packet.dts = pts
    packet.duration, packet.is_keyframe = 1, unit.key
    return packet


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk or the encoder refuses into a FilmError that names `path`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise FilmError(f"{path} cannot be written: {error.strerror}") from error


def finish(part: Path, path: Path, tags: Mapping[str, str] | None = None) -> None:
    """Make of the fragments in `part`, which goes away, the film `path`: an ordinary MP4, the index first.

    `tags` are added to its metadata. Where no copy can be written, the film is the fragments as they are, which
    players take as well. Raises FilmError if it cannot have its name.
    """
    with writing(path):
        try:
            with whole_file(path) as copy:
                _copy(part, copy, tags or {})
        except (av.FFmpegError, OSError):
            put_in_place(part, path)
        else:
            part.unlink()


def _copy(part: Path, copy: Path, tags: Mapping[str, str]) -> None:
    with (
        av.open(str(part), "r") as source,
        av.open(str(copy), "w", format="mp4", options=COPY_OPTIONS) as container,
    ):
        kept = {name: text for name, text in source.metadata.items() if name not in OF_THE_MUXER}
        container.metadata.update({**kept, **tags})
        video = source.streams.video[0]
        stream = container.add_stream_from_template(video, opaque=True)
        stream.time_base = video.time_base
        for packet in source.demux(video):
            if packet.size:  # The last one only says that it is the last.
                packet.stream = stream
                container.mux(packet)


def whole_film(source: Path, target: Path, frames: int, tags: Mapping[str, str]) -> None:
    """An ordinary MP4 of all `frames` of a fragmented one, its index in front. Raises FFmpegError, or OSError."""
    _copy(source, target, tags)
    with av.open(str(target)) as made:
        if made.streams.video[0].frames != frames:
            raise OSError(5, f"{made.streams.video[0].frames} of {frames} frames were written")


def frames_in(path: Path) -> int:
    """How many frames an MP4 has. Raises FilmError if it cannot be read."""
    try:
        with av.open(str(path), "r") as container:
            return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
    except (av.FFmpegError, OSError) as error:
        raise FilmError(f"{path} is not a film that can be read: {error.strerror}") from error


def cut_to_whole(path: Path) -> None:
    """Cut a file that nobody goes on writing behind its last whole fragment, where players want it to end."""
    with path.open("r+b") as file:
        file.truncate(max((found.end for found in boxes(file) if found.kind == b"mdat"), default=0))

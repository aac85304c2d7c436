"""Ordinary MP4s, which have their index in front, of files that were written in fragments."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import av
from av.container import OutputContainer

from serving.errors import FilmError
from serving.media.whole_file import put_in_place, whole_file

_OPTIONS = {"movflags": "faststart+use_metadata_tags"}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk or the encoder refuses into a FilmError that names `path`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise FilmError(f"{path} cannot be written: {error.strerror}") from error


class _UnbufferedFile:
    """A file that holds all that PyAV has written: to put the index first, it opens it again, by its name."""

    def __init__(self, file: BinaryIO) -> None:
        self.name, self.seek, self.tell = file.name, file.seek, file.tell
        self._file = file

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._file.flush()
        return written


@contextlib.contextmanager
def new_mp4(path: Path) -> Iterator[OutputContainer]:
    """An ordinary MP4 to be written. Raises FFmpegError, or OSError."""
    # A file that PyAV opens itself stays open, with a buffer of 256 KiB, where the disk refuses its first or last
    # bytes.
    with (
        path.open("wb") as file,
        av.open(_UnbufferedFile(file), "w", format="mp4", options=_OPTIONS) as container,
    ):
        yield container


def finish(part: Path, path: Path, frames: int, tags: Mapping[str, str]) -> None:
    """Make of the fragments in `part`, which goes away, the film `path`: an ordinary MP4 with `tags`.

    Where no copy can be written, the film is the fragments as they are, which players take as well. Raises
    FilmError if it cannot have its name.
    """
    with writing(path):
        try:
            with whole_file(path) as copy:
                make_ordinary(part, copy, frames, tags)
        except (av.FFmpegError, OSError):
            put_in_place(part, path)
        else:
            part.unlink()


def make_ordinary(source: Path, target: Path, frames: int, tags: Mapping[str, str]) -> None:
    """Write an ordinary MP4 of all `frames` of a fragmented one, as they are. Raises FFmpegError, or OSError."""
    _copy(source, target, tags)
    with av.open(str(target)) as made:
        if made.streams.video[0].frames != frames:
            raise OSError(errno.EIO, f"{made.streams.video[0].frames} of {frames} frames were written")


def _copy(source: Path, target: Path, tags: Mapping[str, str]) -> None:
    with av.open(str(source), "r") as fragments, new_mp4(target) as container:
        container.metadata.update(tags)
        video = next((stream for stream in fragments.streams.video if stream.codec_context is not None), None)
        if video is None:
            raise OSError(errno.EIO, "it has no video")
        stream = container.add_stream_from_template(video, opaque=True)
        stream.time_base = video.time_base
        for packet in fragments.demux(video):
            if packet.size:  # The last one only says that it is the last.
                packet.stream = stream
                container.mux(packet)

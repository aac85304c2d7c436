"""A film on disk: MP4 with H.264 at the stream's 16 frames per second, written while it is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.video.frame import PictureType
from torch import Tensor

from engines.config import FRAMES_PER_SECOND
from serving.errors import FilmError

H264_OPTIONS = {
    "preset": "veryfast",
    "tune": "zerolatency",
    "crf": "18",
    # A forced key frame closes the group before it, and none comes unasked.
    "forced-idr": "1",
    "g": "1000000",
    # One thread is one slice: the bytes do not depend on the machine's cores.
    "threads": "1",
}

MP4_OPTIONS = {
    # Finished chunks can be played even if the process dies; a finished file is an ordinary MP4.
    "movflags": "hybrid_fragmented+use_metadata_tags",
    "flush_packets": "1",
}

FACTS_TAG = "longtake"
"""The metadata tag that holds the facts of a film."""


class Film:
    """An MP4 file being written. Each chunk is a closed group of pictures that begins with a key frame.

    `facts`, a text, goes into the file's metadata, where `read_facts` finds it. Every method raises FilmError
    where the file cannot be written.
    """

    def __init__(self, path: Path, height: int, width: int, facts: str | None = None) -> None:
        self._path = path
        with writing(path):
            # Opened here and now: the library would leave it to the first chunk.
            self._file = path.open("wb", buffering=0)
            self._container = av.open(self._file, "w", format="mp4", options=MP4_OPTIONS)
        if facts is not None:
            self._container.metadata[FACTS_TAG] = facts
        self._stream = self._container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=H264_OPTIONS)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, FRAMES_PER_SECOND)
        self.frames = 0

    def append(self, pictures: Tensor) -> None:
        """Encode and write a chunk, [frames, height, width, 3] uint8 on the CPU."""
        with writing(self._path):
            for number, picture in enumerate(pictures.numpy()):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = self.frames, Fraction(1, FRAMES_PER_SECOND)
                frame.pict_type = PictureType.I if number == 0 else PictureType.NONE
                self._container.mux(self._stream.encode(frame))
                self.frames += 1

    def close(self) -> None:
        """Finish the file; one without a picture is taken away."""
        with writing(self._path), self._file:
            if self.frames == 0:
                if self._path.is_file():
                    self._path.unlink()
                return
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What broke the film says more than that it cannot be finished either.
        with contextlib.suppress(FilmError) if isinstance(error, FilmError) else contextlib.nullcontext():
            self.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk or the encoder refuses into a FilmError that names `path`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise FilmError(f"{path} cannot be written: {error.strerror}") from error


def read_facts(path: Path) -> str:
    """The facts in a film's metadata. Raises FilmError if it is no film, or none of Longtake's."""
    try:
        with av.open(str(path)) as container:
            facts = container.metadata.get(FACTS_TAG)
    except (av.FFmpegError, OSError) as error:
        raise FilmError(f"{path} is not a film that can be read: {error.strerror}") from error
    if facts is None:
        raise FilmError(f"{path} has no facts in it; only a film that `longtake generate` made can be made again")
    return facts

"""Chunks as fragmented MP4, which browsers play while it comes (ISO 14496-12, sections 8.8 and 8.16)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from serving.errors import FilmError
from serving.media.chunk import FRAMES_PER_SECOND, Chunk
from serving.media.h264 import ParameterSets, sample

_TRACK = 1
_UNITY_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_KEY, _NOT_KEY = 0x02000000, 0x01010000
_TRACK_SHOWN = 3
_UTF_8 = 1

_BASE_IS_MOOF, _DEFAULT_FLAGS = 0x020000, 0x20
_DATA_OFFSET, _FIRST_FLAGS, _SIZES = 0x1, 0x4, 0x200


class Box(NamedTuple):
    """An outermost box of a file: what kind it is, and where it begins and ends."""

    kind: bytes
    begin: int
    end: int

    @property
    def data_bytes(self) -> int:
        """How long it is behind its length and kind."""
        return self.end - self.begin - 8


class Fragments:
    """Segments for a video of `height` by `width` that begins at, or passes through, the chunk `first`.

    `init`, of which `movie` is all but the file's type, goes to the player once, before any segment; `codec` is
    what MediaSource wants to know. Frame n lies at n/16 s, whichever segment comes first. Raises FilmError if
    `first` does not begin with parameter sets.
    """

    def __init__(self, first: Chunk, height: int, width: int) -> None:
        self._sets = ParameterSets.of(first)
        self.codec = self._sets.codec
        self.movie = _movie(self._sets, height, width)
        self.init = FILE_TYPE + self.movie

    def fits(self, chunk: Chunk) -> bool:
        """Whether `init` serves for `chunk`; if not, its encoder is another one, and new fragments must begin."""
        return ParameterSets.of(chunk) == self._sets

    def segment(self, chunk: Chunk) -> bytes:
        """A chunk as a segment, which can be played wherever it comes. Raises FilmError if `init` does not fit."""
        if not self.fits(chunk):
            raise FilmError(f"the chunk at frame {chunk.first_frame} was made by another encoder; begin anew")
        samples = [sample(unit) for unit in chunk.units]
        sizes = [len(data) for data in samples]
        # Where the data lies depends on how long the box is that says it.
        offset = len(_movie_fragment(chunk, sizes, 0)) + 8
        return _movie_fragment(chunk, sizes, offset) + box("mdat", *samples)


def frames_of(moof: bytes, data_bytes: int) -> int:
    """How many frames the `moof` of a segment describes. Raises FilmError unless they fill its `data_bytes`."""
    try:
        run = moof.index(b"trun")
        (frames,) = struct.unpack_from(">I", moof, run + 8)
        sizes = struct.unpack_from(f">{frames}I", moof, run + 20)
    except (ValueError, struct.error) as error:
        raise FilmError(f"a fragment does not say which frames it has: {error}") from error
    if sum(sizes) != data_bytes:
        raise FilmError(f"a fragment of {data_bytes} bytes describes frames of {sum(sizes)}")
    return len(sizes)


def box(kind: str, *parts: bytes) -> bytes:
    """A box of ISO 14496-12."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind.encode()) + body


def tag_box(name: str, text: str) -> bytes:
    """A file's metadata: one tag, of the form that FFmpeg reads and writes for `use_metadata_tags`."""
    handler = _full_box("hdlr", 0, 0, struct.pack(">4x4s12x", b"mdta"), b"\x00")
    names = _full_box("keys", 0, 0, struct.pack(">I", 1), box("mdta", name.encode()))
    value = box("data", struct.pack(">2I", _UTF_8, 0), text.encode())
    return _full_box("meta", 0, 0, handler, names, box("ilst", struct.pack(">2I", 8 + len(value), 1), value))


def boxes(file: BinaryIO) -> Iterator[Box]:
    """The outermost boxes that are all there."""
    end, size = 0, file.seek(0, os.SEEK_END)
    while end + 8 <= size:
        file.seek(end)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length < 8 or end + length > size:
            return
        yield Box(kind, end, end + length)
        end += length


FILE_TYPE = box("ftyp", b"iso6", struct.pack(">I", 0), b"iso6avc1mp41")


def _full_box(kind: str, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _movie(sets: ParameterSets, height: int, width: int) -> bytes:
    """Without a length: the fragments say it."""
    times = struct.pack(">4I", 0, 0, FRAMES_PER_SECOND, 0)
    rate_and_volume = struct.pack(">IH10x", 0x10000, 0x100)
    next_track = struct.pack(">24xI", _TRACK + 1)
    header = _full_box("mvhd", 0, 0, times, rate_and_volume, _UNITY_MATRIX, next_track)
    defaults = _full_box("trex", 0, 0, struct.pack(">5I", _TRACK, 1, 1, 0, 0))
    return box("moov", header, _track(sets, height, width), box("mvex", defaults))


def _track(sets: ParameterSets, height: int, width: int) -> bytes:
    size = struct.pack(">2I", width << 16, height << 16)
    head = struct.pack(">5I16x", 0, 0, _TRACK, 0, 0)
    header = _full_box("tkhd", 0, _TRACK_SHOWN, head, _UNITY_MATRIX, size)
    undetermined = struct.pack(">2H", 0x55C4, 0)
    media_header = _full_box("mdhd", 0, 0, struct.pack(">4I", 0, 0, FRAMES_PER_SECOND, 0), undetermined)
    handler = _full_box("hdlr", 0, 0, struct.pack(">4x4s12x", b"vide"), b"\x00")
    return box("trak", header, box("mdia", media_header, handler, _media_information(sets, height, width)))


def _media_information(sets: ParameterSets, height: int, width: int) -> bytes:
    data_in_file = _full_box("dref", 0, 0, struct.pack(">I", 1), _full_box("url ", 0, 1))
    description = _full_box("stsd", 0, 0, struct.pack(">I", 1), _sample_entry(sets, height, width))
    no_entries = [_full_box(kind, 0, 0, bytes(4)) for kind in ("stts", "stsc", "stco")]
    no_samples = _full_box("stsz", 0, 0, bytes(8))
    table = box("stbl", description, *no_entries, no_samples)
    return box("minf", _full_box("vmhd", 0, 1, bytes(8)), box("dinf", data_in_file), table)


def _sample_entry(sets: ParameterSets, height: int, width: int) -> bytes:
    resolution, depth, no_palette = 72 << 16, 24, -1
    head = struct.pack(">6xH16x2H", 1, width, height)
    rest = struct.pack(">2I4xH32xHh", resolution, resolution, 1, depth, no_palette)
    return box("avc1", head, rest, box("avcC", sets.record))


def _movie_fragment(chunk: Chunk, sizes: list[int], offset: int) -> bytes:
    """`offset` leads from the fragment's first byte to the first sample's."""
    number = _full_box("mfhd", 0, 0, struct.pack(">I", chunk.block + 1))
    header = _full_box("tfhd", 0, _BASE_IS_MOOF | _DEFAULT_FLAGS, struct.pack(">2I", _TRACK, _NOT_KEY))
    time = _full_box("tfdt", 1, 0, struct.pack(">Q", chunk.first_frame))
    head = struct.pack(">IiI", len(sizes), offset, _KEY)
    run = _full_box("trun", 0, _DATA_OFFSET | _FIRST_FLAGS | _SIZES, head, struct.pack(f">{len(sizes)}I", *sizes))
    return box("moof", number, box("traf", header, time, run))

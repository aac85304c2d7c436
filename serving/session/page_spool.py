"""Numbered pages of bytes in a file without a name, which goes with the process that has it open."""

from __future__ import annotations

import os
import struct
import tempfile
import weakref
from array import array
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, TypeVar

from serving.errors import LimitReached, SessionNotFound

T = TypeVar("T")

_HEAD = struct.Struct("<Iq")
"""In front of each page: its length, and its key."""


class PageSpool:
    """Pages in the order of their keys. In memory there are two numbers for each; the file comes with the first.

    Every method raises LimitReached where the file cannot be written or read, and then has changed nothing.
    """

    def __init__(self) -> None:
        self._keys: array[int] = array("q")
        self._ends: array[int] = array("q")
        self._file: IO[bytes] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return self._ends[-1] if self._ends else 0

    def append(self, key: int, page: bytes) -> None:
        """Write one more page, whose key is not below the last one's."""
        self._write(_HEAD.pack(len(page), key) + page)
        self._keys.append(key)
        self._ends.append(self.nbytes + _HEAD.size + len(page))

    def read(self, number: int) -> bytes:
        """Page `number`, counted from 0."""
        begin = self._ends[number - 1] if number else 0
        return self._read(begin + _HEAD.size, self._ends[number] - begin - _HEAD.size)

    def truncate(self, count: int) -> None:
        """Keep the first `count` pages."""
        del self._keys[count:], self._ends[count:]
        if self._file is not None:
            # Where this fails, the next page is written over what stays.
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), self.nbytes)

    def pages_before(self, key: int) -> int:
        """How many pages have a lower key."""
        return bisect_left(self._keys, key)

    def data(self, pages: int) -> bytes:
        """The first pages, for `extend`."""
        return self._read(0, self._ends[pages - 1]) if pages else b""

    def extend(self, data: bytes) -> None:
        """Write pages that another spool gave. Raises ValueError if they do not end where the data does."""
        keys, ends, at = self._keys[:0], self._ends[:0], 0
        while at < len(data):
            length, key = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            keys.append(key)
            ends.append(self.nbytes + at)
        if at != len(data):
            raise ValueError(f"{len(data)} bytes of pages end at byte {at}")
        self._write(data)
        self._keys += keys
        self._ends += ends

    def close(self) -> None:
        """Give the file back; nothing can be read any more."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        """Behind the last page. What is written in part lies behind the end, and is written over."""
        if not data:
            return
        file, at = self._opened(), self.nbytes
        while data:
            written = _tried("written", partial(os.pwrite, file, data, at))
            data, at = data[written:], at + written

    def _read(self, begin: int, count: int) -> bytes:
        data = _tried("read", partial(os.pread, self._opened(), count, begin))
        if len(data) < count:
            raise LimitReached(f"the log of applied cues cannot be read: {len(data)} of {count} bytes are there")
        return data

    def _opened(self) -> int:
        if self._closed:
            raise SessionNotFound("the session has ended, and its log of applied cues with it")
        if self._file is None:
            file = _tried("opened", _temporary_file)
            weakref.finalize(self, file.close)
            self._file = file
        return self._file.fileno()


def _temporary_file() -> IO[bytes]:
    return tempfile.TemporaryFile(buffering=0)


def _tried(what: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise LimitReached(f"the log of applied cues cannot be {what}: {error.strerror}") from error

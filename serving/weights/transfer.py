"""The bytes of one file over HTTP, continued behind those that are here. No answer is trusted unchecked.

A proxy, a mirror or a page that wants a sign-in may answer in the hub's place: what is not the range that was
asked for touches nothing. Ranges that are refused twice are given up for the whole file, which is asked for once
and written beside the part that is here. It replaces that only if its hash is right.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import httpx2
from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

TRIES = 5
"""Failures in a row, without a new byte, before a transfer is given up."""

RANGE_TRIES = 2
"""Ranges in a row that are not served before the whole file is asked for."""

RETRY_PAUSE_S = 1.0
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
DECODED = ("", "identity", "gzip", "deflate")
"""Encodings of a body that are undone here."""

BINARY = (".safetensors", ".pth", ".pt", ".model")
"""Endings of files that no server takes for text, unless it takes all for that: then it knows their lengths."""

COMPARED_BYTES = 1 << 20

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Untrusted(Exception):
    """An answer that is not what was asked for. The message says what it is."""


class RangeRefused(Untrusted):
    """The range that was asked for is not served."""


class File(Protocol):
    """What is to arrive."""

    @property
    def path(self) -> str:
        """Its name, for what is said of it."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is it, to the last byte."""
        ...


@dataclass
class Transfer:
    """Brings `partial` to the length of `file`, from `url`.

    `received` is told the length after each piece. `trusted` bytes were here before, or came before the server
    began to name another version of the file: if the hash turns out wrong, the others are the first suspects.
    """

    url: str
    headers: Mapping[str, str]
    file: File
    partial: Path
    received: Callable[[int], None]
    trusted: int = 0
    etag: str = ""
    whole_asked: bool = False

    def run(self) -> None:
        """Fetch what is missing. What has arrived stays in `partial` if this fails.

        Raises httpx2.RequestError, HfHubHTTPError or Untrusted once it has been tried often enough.
        """
        self._begin()
        failures = refusals = 0
        while (before := self._length) < self.file.size:
            try:
                if refusals >= RANGE_TRIES and not self.whole_asked:
                    self.fetch_whole()
                else:
                    self._continue()
            except (httpx2.TransportError, httpx2.DecodingError, HfHubHTTPError, Untrusted) as error:
                failures = 0 if self._length > before else failures + 1
                refusals = refusals + 1 if isinstance(error, RangeRefused) else 0
                if failures >= TRIES or not _passes(error) or (refusals >= RANGE_TRIES and self.whole_asked):
                    raise
                time.sleep(RETRY_PAUSE_S)

    def fetch_whole(self) -> None:
        """Ask for all of the file, whatever is here of it, which stays unless that is right."""
        with self._get(0) as response:
            self._take_whole(response)

    @property
    def _length(self) -> int:
        return self.partial.stat().st_size

    @property
    def _beside(self) -> Path:
        return self.partial.with_name(f"{self.partial.name}.whole")

    def _begin(self) -> None:
        self._beside.unlink(missing_ok=True)
        self.partial.touch()
        if self._length > self.file.size:
            os.truncate(self.partial, self.file.size)
        if self._length == self.file.size and not self.file.matches(self.partial):
            os.truncate(self.partial, 0)
        self.trusted = self._length

    @contextmanager
    def _get(self, start: int) -> Iterator[httpx2.Response]:
        """The answer to a request for the bytes from `start` on, if it is one."""
        headers = {**self.headers, "Accept-Encoding": "identity"}  # Ranges count the file's bytes.
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", self.url, headers=headers, timeout=TIMEOUT) as response:
            if start and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise RangeRefused(f"{response.url} answers 416 to bytes {start}- of {self._name}")
            hf_raise_for_status(response)
            if self._is_page(response):
                raise Untrusted(f"{response.url} answers with a web page instead of {self._name}")
            if response.headers.get("Content-Encoding", "").strip().lower() not in DECODED:
                raise Untrusted(f"{response.url} sends {self._name} in an encoding that was not asked for")
            yield response

    def _is_page(self, response: httpx2.Response) -> bool:
        """Whether an answer is by its own words a text for readers, and this is another file."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            return not self.file.path.endswith(".html")
        measured = "Content-Length" in response.headers or "Content-Range" in response.headers
        return kind.startswith("text/") and not measured and self.file.path.endswith(BINARY)

    def _continue(self) -> None:
        start = self._length
        with self._get(start) as response:
            if start == 0:
                self._require_whole(response)
                self._note_version(response, 0)
                self._append(response, 0, self.file.size)
            elif response.status_code == HTTPStatus.OK:
                if self.whole_asked:
                    raise RangeRefused(f"{response.url} sends all of {self._name} again and again")
                self._take_whole(response)
            else:
                end = self._require_range(response, start)
                self._note_version(response, start)
                self._append(response, start, end)

    def _append(self, response: httpx2.Response, start: int, end: int) -> None:
        """Write the bytes from `start` to before `end`, of which the body must not have more."""
        with self.partial.open("r+b") as output:
            output.seek(start)
            reached = _copy(response, output.write, start, end, self.received)
            if reached > end:
                output.truncate(start)
        if reached > end:
            raise Untrusted(f"{response.url} sends more than the {self.file.size} bytes of {self._name}")
        if reached < end:
            raise httpx2.RemoteProtocolError(f"{response.url} ended after {reached} of {self.file.size} bytes")

    def _take_whole(self, response: httpx2.Response) -> None:
        """Write all of the file beside the part, and put it in the place of that if it is right, or further."""
        self._require_whole(response)
        self.whole_asked = True
        try:
            with self._beside.open("wb") as output:
                here = self._length
                reached = _copy(
                    response, output.write, 0, self.file.size, lambda done: self.received(max(done, here))
                )
            if reached < self.file.size:
                raise httpx2.RemoteProtocolError(f"{response.url} ended after {reached} of {self.file.size} bytes")
            if not self.file.matches(self._beside):
                raise Untrusted(f"{response.url} sends another file than the {self._name} that is promised")
            self._beside.replace(self.partial)
        except (httpx2.RequestError, OSError):
            self._keep_longer()
            raise
        finally:
            self._beside.unlink(missing_ok=True)

    def _keep_longer(self) -> None:
        """Put what is beside the part in its place if it is the part and more."""
        if self._beside.stat().st_size <= self._length:
            return
        with self.partial.open("rb") as part, self._beside.open("rb") as whole:
            while piece := part.read(COMPARED_BYTES):
                if whole.read(len(piece)) != piece:
                    return
        self._beside.replace(self.partial)
        self.trusted = 0

    def _require_whole(self, response: httpx2.Response) -> None:
        length = response.headers.get("Content-Length")
        encoded = response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
        if response.status_code != HTTPStatus.OK:
            raise Untrusted(f"{response.url} answers {response.status_code} to a request for all of {self._name}")
        if length is not None and not encoded and length != str(self.file.size):
            raise Untrusted(f"{response.url} sends {length} bytes; {self._name} has {self.file.size}")

    def _require_range(self, response: httpx2.Response, start: int) -> int:
        """The end of the range, which must begin where it was asked to."""
        told = response.headers.get("Content-Range", "none")
        asked = f"bytes {start}- of {self.file.size} of {self._name}"
        found = _CONTENT_RANGE.fullmatch(told)
        encoded = response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or found is None or encoded:
            raise RangeRefused(f"{response.url} answers {response.status_code}, range {told[:60]!r}, to {asked}")
        first, last = int(found[1]), int(found[2])
        if first != start or not start <= last < self.file.size or found[3] not in ("*", str(self.file.size)):
            raise RangeRefused(f"{response.url} sends {told[:60]!r} instead of {asked}")
        length = response.headers.get("Content-Length")
        if length is not None and length != str(last + 1 - first):
            raise RangeRefused(f"{response.url} sends {length} bytes as {told[:60]!r} of {self._name}")
        return last + 1

    def _note_version(self, response: httpx2.Response, start: int) -> None:
        etag = response.headers.get("ETag", "")
        if self.etag and etag and etag != self.etag:
            self.trusted = start
        self.etag = etag or self.etag

    @property
    def _name(self) -> str:
        return self.file.path


def _copy(
    response: httpx2.Response,
    write: Callable[[bytes], int],
    start: int,
    end: int,
    received: Callable[[int], None],
) -> int:
    """Write a body's bytes from `start` on; how far it goes, a little beyond `end` if there is more."""
    for piece in response.iter_bytes():
        start += write(piece)
        if start > end:
            break
        received(start)
    return start


def _passes(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING_STATUSES

"""The log of the cues that have applied in a take: its end in memory, what is older in a file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from serving.session.applied_page import pack_page, unpack_page
from serving.session.page_spool import PageSpool
from serving.session.types import PAGE, Applied, AppliedTail, tail_start


class AppliedLog:
    """Entries by rising block. Nothing takes longer because the log is long, but to read all of it.

    The last 129 to 256 entries are in memory; the pages before them are in a file, which `close` gives back. Every
    method raises LimitReached where that cannot be written or read (the disk is full), and has changed nothing.
    """

    def __init__(self, entries: Iterable[Applied] = ()) -> None:
        self._spool = PageSpool()
        self._first = 0
        self._recent: list[Applied] = []
        for entry in entries:
            self.append(entry)

    @classmethod
    def of(cls, tail: AppliedTail, past: bytes = b"") -> AppliedLog:
        """The log that ends with `tail`, and whose `past` is the rest. Raises ValueError if that is not whole."""
        log = cls()
        log._spool.extend(past)
        if len(log._spool) * PAGE != tail.first:
            raise ValueError(f"the log has {len(log._spool) * PAGE} entries before number {tail.first}")
        log._first, log._recent = tail.first, list(tail.entries)
        return log

    def __len__(self) -> int:
        return self._first + len(self._recent)

    def __iter__(self) -> Iterator[Applied]:
        """All of them, a page in memory at a time."""
        return self.entries(0)

    @property
    def last(self) -> Applied | None:
        """The newest entry."""
        return self._recent[-1] if self._recent else None

    @property
    def tail(self) -> AppliedTail:
        """Those in memory."""
        return AppliedTail(self._first, tuple(self._recent))

    @property
    def held(self) -> int:
        """How many entries are in memory."""
        return len(self._recent)

    @property
    def spooled_bytes(self) -> int:
        """Of the file."""
        return self._spool.nbytes

    def append(self, entry: Applied) -> None:
        """One more has applied."""
        if tail_start(len(self) + 1) > self._first:
            page = self._recent[:PAGE]
            self._spool.append(page[0].block, pack_page(page))
            self._first += PAGE
            del self._recent[:PAGE]
        self._recent.append(entry)

    def truncate(self, count: int) -> None:
        """Keep the first `count` entries. Raises ValueError if there are fewer."""
        if count > len(self):
            raise ValueError(f"the log has {len(self)} entries; {count} cannot be kept")
        first = tail_start(count)
        recent = [*self.page(first, count - first)] if first < self._first else self._recent[: count - self._first]
        self._spool.truncate(first // PAGE)
        self._first, self._recent = first, recent

    def replace_from(self, kept: int, entries: Iterable[Applied]) -> None:
        """Put `entries` in place of all behind the first `kept`."""
        self.truncate(kept)
        for entry in entries:
            self.append(entry)

    def page(self, start: int, count: int) -> tuple[Applied, ...]:
        """At most `count` entries from number `start` on."""
        end = min(start + count, len(self))
        found: list[Applied] = []
        while start < min(end, self._first):
            page = unpack_page(self._spool.read(start // PAGE))
            found += page[start % PAGE : end - start + start % PAGE]
            start = (start // PAGE + 1) * PAGE
        return (*found, *self._recent[max(start - self._first, 0) : max(end - self._first, 0)])

    def entries(self, start: int) -> Iterator[Applied]:
        """From number `start` on, a page in memory at a time."""
        while page := self.page(start, PAGE - start % PAGE):
            yield from page
            start += len(page)

    def count_before(self, block: int) -> int:
        """How many cues had applied before `block`."""
        if not len(self._spool) or self._recent[0].block < block:
            return self._first + bisect_left(self._recent, block, key=lambda entry: entry.block)
        start = PAGE * max(self._spool.pages_before(block) - 1, 0)
        return start + bisect_left(self.page(start, PAGE), block, key=lambda entry: entry.block)

    def past(self) -> bytes:
        """All that is before `tail`, for `of` in another process."""
        return self._spool.data(len(self._spool))

    def copy(self, count: int) -> AppliedLog:
        """The first `count` entries, in a log of their own."""
        first = tail_start(count)
        return self.of(AppliedTail(first, self.page(first, count - first)), self._spool.data(first // PAGE))

    def close(self) -> None:
        """Give the file back. What is in memory can still be read."""
        self._spool.close()

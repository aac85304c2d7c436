"""A page of applied cues as compact bytes: numbers as differences in varints, each text once, compressed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from serving.session.types import Applied
from serving.timeline.cue import METHODS, Blend, Cue, Restyling, Transition

_WEIGHT = struct.Struct("<d")
_COMPRESSION = 1


def pack_page(entries: Sequence[Applied]) -> bytes:
    """The entries as bytes."""
    texts: dict[str, int] = {}
    body, before = bytearray(), (0, 0, 0)
    for entry in entries:
        numbers = entry.block, entry.frame, entry.step
        for number, last in zip((*numbers, entry.cue.frame), (*before, entry.frame), strict=True):
            _put_signed(body, number - last)
        before = numbers
        _put(body, texts.setdefault(entry.command_id, len(texts)))
        _put_cue(body, entry.cue, texts)
    head = bytearray()
    _put(head, len(entries))
    _put(head, len(texts))
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        _put(head, len(data))
        head += data
    return zlib.compress(bytes(head + body), _COMPRESSION)


def unpack_page(data: bytes) -> tuple[Applied, ...]:
    """Undo `pack_page`."""
    return tuple(_entries(_Reader(zlib.decompress(data))))


def _put_cue(body: bytearray, cue: Cue, texts: dict[str, int]) -> None:
    transition, parts = cue.transition, cue.blend.parts
    way = 0 if transition is None else 1 + METHODS.index(transition.method)
    weighted = any(weight != 1.0 for _, weight in parts)
    _put(body, (len(parts) * 2 + weighted) * (1 + len(METHODS)) + way)
    if transition is not None:
        _put(body, transition.blocks)
    _put_restyling(body, cue.restyling)
    for text, weight in parts:
        _put(body, texts.setdefault(text, len(texts)))
        if weighted:
            body += _WEIGHT.pack(weight)


def _put_restyling(body: bytearray, restyling: Restyling | None) -> None:
    """Which of its parts there are as bits, and then the scale of the noise."""
    if restyling is None:
        _put(body, 0)
        return
    scale, follows = restyling.noise_scale, restyling.follows_motion
    has_follows, has_scale = follows is not None, scale is not None
    bits = 1 | restyling.renews_sink << 1 | has_follows << 2 | bool(follows) << 3 | has_scale << 4
    _put(body, bits | restyling.cuts << 5)
    if scale is not None:
        body += _WEIGHT.pack(scale)


def _put(body: bytearray, number: int) -> None:
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)


def _put_signed(body: bytearray, number: int) -> None:
    _put(body, 2 * number if number >= 0 else -2 * number - 1)


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """The whole number at a place, seven bits a byte, and where it ends.

    Raises IndexError where the bytes end before it does, and ValueError for one of more than ten bytes.
    """
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number has more than ten bytes")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        number, self._at = read_number(self._data, self._at)
        return number

    def signed(self) -> int:
        number = self.number()
        return number >> 1 if number % 2 == 0 else -(number >> 1) - 1

    def take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]


def _entries(reader: _Reader) -> Iterator[Applied]:
    count = reader.number()
    texts = [reader.take(reader.number()).decode("utf-8", "surrogatepass") for _ in range(reader.number())]
    block = frame = step = 0
    for _ in range(count):
        block, frame, step = block + reader.signed(), frame + reader.signed(), step + reader.signed()
        cue_frame, command_id = frame + reader.signed(), texts[reader.number()]
        yield Applied(_cue(reader, cue_frame, texts), block, frame, command_id, step)


def _cue(reader: _Reader, frame: int, texts: Sequence[str]) -> Cue:
    kind, way = divmod(reader.number(), 1 + len(METHODS))
    transition = Transition(reader.number(), METHODS[way - 1]) if way else None
    restyling = _restyling(reader)
    count, weighted = divmod(kind, 2)
    parts = []
    for _ in range(count):
        text = texts[reader.number()]
        parts.append((text, _WEIGHT.unpack(reader.take(_WEIGHT.size))[0] if weighted else 1.0))
    return Cue(frame, Blend(tuple(parts)), transition, restyling)


def _restyling(reader: _Reader) -> Restyling | None:
    bits = reader.number()
    if not bits:
        return None
    scale = _WEIGHT.unpack(reader.take(_WEIGHT.size))[0] if bits & 16 else None
    return Restyling(scale, bool(bits & 8) if bits & 4 else None, bool(bits & 2), bool(bits & 32))

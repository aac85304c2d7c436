"""H.264 taken apart: from an encoder's byte stream (ITU-T H.264, Annex B) to what MP4 holds (ISO 14496-15)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from serving.errors import FilmError
from serving.media.chunk import AccessUnit, Chunk

SEI = 6
SPS = 7
PPS = 8

_START_CODE = b"\x00\x00\x00\x01"
_MARK = b"\x00\x00\x01"


def split_units(data: bytes) -> list[bytes]:
    """The NAL units of a byte stream, without start codes and the zeros around them."""
    return [unit.rstrip(b"\x00") for unit in data.split(_MARK)[1:]]


def join_units(units: Iterable[bytes]) -> bytes:
    """NAL units as a byte stream."""
    return b"".join(_START_CODE + unit for unit in units)


def unit_type(unit: bytes) -> int:
    """The type of a NAL unit, such as SPS."""
    return unit[0] & 0x1F


def sample(unit: AccessUnit) -> bytes:
    """A frame as a sample of a track: each NAL unit after its length, without parameter sets."""
    units = [part for part in split_units(unit.data) if unit_type(part) not in (SPS, PPS)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in units)


class ParameterSets(NamedTuple):
    """What a decoder must know before the first frame: one sequence and one picture parameter set."""

    sps: bytes
    pps: bytes

    @classmethod
    def of(cls, chunk: Chunk) -> Self:
        """Those that the chunk's key carries. Raises FilmError if it carries none."""
        found = {unit_type(unit): unit for unit in split_units(chunk.units[0].data)}
        if not {SPS, PPS} <= found.keys():
            raise FilmError(f"the chunk at frame {chunk.first_frame} does not begin with parameter sets")
        return cls(found[SPS], found[PPS])

    @property
    def codec(self) -> str:
        """As browsers want it: `avc1.`, then profile, constraints and level in hexadecimal."""
        return f"avc1.{self.sps[1:4].hex()}"

    @property
    def record(self) -> bytes:
        """The decoder configuration record of a track whose samples `sample` makes. 4:2:0, 8 bits."""
        head = b"\x01" + self.sps[1:4] + b"\xff"
        sets = b"\xe1" + _counted(self.sps) + b"\x01" + _counted(self.pps)
        high = b"\xfd\xf8\xf8\x00" if self.sps[1] in (100, 110, 122, 144) else b""
        return head + sets + high


def _counted(unit: bytes) -> bytes:
    return len(unit).to_bytes(2, "big") + unit

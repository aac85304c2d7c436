"""H.264 byte streams taken apart: NAL units and their types (ITU-T H.264, Annex B)."""

from __future__ import annotations

import re
from collections.abc import Iterable

START_CODE = b"\x00\x00\x00\x01"

SEI = 6
SPS = 7
PPS = 8

_BETWEEN_UNITS = re.compile(rb"\x00*\x00\x00\x01")


def split_units(data: bytes) -> list[bytes]:
    """The NAL units of a byte stream, without start codes and the zeros around them."""
    return [unit.rstrip(b"\x00") for unit in _BETWEEN_UNITS.split(data)[1:]]


def join_units(units: Iterable[bytes]) -> bytes:
    """NAL units as a byte stream."""
    return b"".join(START_CODE + unit for unit in units)


def unit_type(unit: bytes) -> int:
    """The type of a NAL unit, such as SPS."""
    return unit[0] & 0x1F

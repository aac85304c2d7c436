"""Timecodes: `MM:SS.mmm`, `HH:MM:SS.mmm` and `HH:MM:SS:FF`, where FF counts frames 00 to 15."""

from __future__ import annotations

import re
from fractions import Fraction

from engines.config.geometry import FRAMES_PER_SECOND

# MM:SS or HH:MM:SS, either with decimals.
_CLOCK = re.compile(r"(?:([0-9]{1,2}):(?=[0-5][0-9]:))?([0-9]{1,4}):([0-5][0-9](?:\.[0-9]{1,9})?)")
_FRAMES = re.compile(r"([0-9]{1,2}):([0-5][0-9]):([0-5][0-9]):([0-9]{2})")


def frame_of(text: str) -> int:
    """The frame nearest to a timecode. Raises ValueError that says what is wrong with it."""
    if match := _FRAMES.fullmatch(text):
        hours, minutes, seconds, frames = (int(group) for group in match.groups())
        if frames >= FRAMES_PER_SECOND:
            raise ValueError(f"ends in frame {frames}; a second has {FRAMES_PER_SECOND}, from 00")
        return ((hours * 60 + minutes) * 60 + seconds) * FRAMES_PER_SECOND + frames
    if match := _CLOCK.fullmatch(text):
        hours, minutes = int(match[1] or 0), int(match[2])
        return round(((hours * 60 + minutes) * 60 + Fraction(match[3])) * FRAMES_PER_SECOND)
    raise ValueError("is no timecode; write MM:SS.mmm, HH:MM:SS.mmm or HH:MM:SS:FF")


def timecode(frame: int) -> str:
    """The time of a frame as `MM:SS.mmm`."""
    minutes, milliseconds = divmod(round(Fraction(frame * 1000, FRAMES_PER_SECOND)), 60_000)
    return f"{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"

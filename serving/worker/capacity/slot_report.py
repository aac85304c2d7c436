"""What a replica says of its slots, for whoever decides how many replicas there are to be."""

from __future__ import annotations

from typing import NamedTuple


class SlotReport(NamedTuple):
    """Slots that are `used`, of those that could be now; new sessions let in, and refused, since it began."""

    used: int
    slots: int
    admitted: int
    refused: int

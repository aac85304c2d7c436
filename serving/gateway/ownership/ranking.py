"""In which order replicas are asked for a slot, by what they report."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping


def by_room(
    rooms: Mapping[str, int], avoid: str | None = None, draw: Callable[[], float] = random.random
) -> list[str]:
    """Replicas, the one with most room first and `avoid` last, of equal ones any.

    Two that ask at once should not both be sent to the same; `draw` gives a number for each replica.
    """
    return sorted(rooms, key=lambda replica: (replica != avoid, rooms[replica], draw()), reverse=True)

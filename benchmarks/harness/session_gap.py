"""How long a viewer waits at most when something happens to a session that is paced as a player would pace it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from engines.config.geometry import FRAMES_PER_SECOND
from serving.client.aio import AsyncClient
from serving.client.capture import Playback, opened
from serving.client.interactive import InteractiveSession
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

PROMPT = "a red balloon hovering over rolling hills at noon under a clear sky"
HAPPENS_AT, END = 57, 153


async def gap_s(
    address: str, film: Path, happens: Callable[[InteractiveSession, pb.Session], Awaitable[None]]
) -> float:
    """The longest time without a chunk from then on, in seconds, of a session that misses no frame."""
    async with (
        AsyncClient(address) as client,
        opened(client, [Cue(0, Blend.of(PROMPT))], fps=FRAMES_PER_SECOND) as session,
        client.control(session, from_frame=0) as controller,
    ):
        with closing(Playback(controller, film)) as playback:
            await controller.start()
            await playback.until(HAPPENS_AT)
            await happens(controller, session)
            await playback.until(END)
    late = [arrival for arrival in playback.arrivals if arrival.end_frame >= HAPPENS_AT]
    return max(after.at - before.at for before, after in itertools.pairwise(late))

"""What `longtake play` keeps, against a server in this process that can be closed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import av
import pytest

from serving.cli.play import Playing, _record
from serving.client.aio import AsyncClient
from serving.errors import FilmError
from serving.media.film_file import part_path
from serving.media.fragment_file import can_be_played
from serving.timeline.cue import Blend, Cue
from serving.timeline.schedule import schedule
from serving.timeline.timeline import Settings, Timeline
from tests.serving.fake_sessions import FakeServer, serving

TIMELINE = Timeline((Cue(0, Blend.of("a red balloon")),), frames=9999)


async def play_until_the_server_closes(film: Path) -> None:
    async with AsyncExitStack() as running:
        address = await running.enter_async_context(serving(FakeServer()))
        async with AsyncClient(address, patience_s=0.5) as client:
            session = await client.create(cues=TIMELINE.cues, fps=16)
            async with client.control(session, from_frame=0) as controller:
                playing = Playing(TIMELINE, schedule(TIMELINE), Settings(), 16, film)
                recording = asyncio.create_task(_record(controller, playing))
                while not (part_path(film).exists() and can_be_played(part_path(film))):
                    await asyncio.sleep(0.01)
                await running.aclose()
                await recording


def test_a_film_whose_server_closes_is_kept_and_the_error_says_so(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with pytest.raises(FilmError) as lost:
        asyncio.run(play_until_the_server_closes(film))
    with av.open(str(film)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert str(lost.value).endswith(f"; {film} has the first {frames} frames")

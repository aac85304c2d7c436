"""What a viewer gets, written down, against a server that paints its pictures."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest

from serving.client.aio import AsyncClient
from serving.client.capture import Arrival, Playback, opened, shown, time_of
from serving.errors import FrameOutOfRange, SessionNotFound
from serving.timeline.cue import Blend, Cue
from tests.serving.fake_sessions import FakeServer, painted_frame, serving

BALLOON = Cue(0, Blend.of("a red balloon"))


def play(server: FakeServer, path: Path, end_frame: int) -> Playback:
    async def run() -> Playback:
        async with (
            asyncio.timeout(30),
            serving(server) as address,
            AsyncClient(address, patience_s=5) as client,
            opened(client, [BALLOON], fps=0, ahead=8) as session,
            client.control(session, from_frame=0) as controller,
        ):
            await controller.start()
            with closing(Playback(controller, path)) as playback:
                await playback.until(end_frame)
            return playback

    return asyncio.run(run())


def numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [
            painted_frame(picture.to_ndarray(format="rgb24").astype(np.uint8))
            for picture in container.decode(video=0)
        ]


def test_a_played_session_is_a_film_of_every_frame_once(tmp_path: Path) -> None:
    playback = play(FakeServer(), tmp_path / "film.mp4", 100)
    assert playback.frames == 105
    assert numbers(tmp_path / "film.mp4") == list(range(105))
    assert [applied.frame for applied in playback.applied] == [0]


def test_a_film_has_every_frame_once_though_its_streams_break(tmp_path: Path) -> None:
    server = FakeServer()
    server.faults.chunks_before_loss = [2, 1]
    play(server, tmp_path / "film.mp4", 60)
    assert numbers(tmp_path / "film.mp4") == list(range(69))
    assert not server.sessions


def test_a_film_with_a_gap_is_refused(tmp_path: Path) -> None:
    server = FakeServer()
    server.faults.chunks_before_loss, server.faults.kept_chunks, server.faults.blocks_while_lost = [2], 1, 2
    with pytest.raises(FrameOutOfRange, match="not kept"):
        play(server, tmp_path / "film.mp4", 1000)


def test_a_player_starts_with_the_first_chunk_and_waits_for_a_late_one() -> None:
    arrivals = [Arrival(0, 9, 10.0), Arrival(9, 21, 10.1), Arrival(21, 33, 12.0), Arrival(33, 45, 12.1)]
    times = shown(arrivals, fps=12)
    assert [time.at for time in times] == pytest.approx([10.0, 10.75, 12.0, 13.0])
    assert [time.waited for time in times] == pytest.approx([0, 0, 0.25, 0])


def test_a_frame_that_begins_no_chunk_has_no_time() -> None:
    assert time_of(9, [Arrival(0, 9, 1.0), Arrival(9, 21, 2.0)]) == 2.0
    with pytest.raises(SessionNotFound, match="frame 10"):
        time_of(10, [Arrival(0, 9, 1.0), Arrival(9, 21, 2.0)])

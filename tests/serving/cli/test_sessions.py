"""What `longtake sessions` prints of sessions that cannot be made at their pace."""

from __future__ import annotations

import pytest

from serving.cli.sessions import _row, describe
from serving.pb.longtake.v1 import sessions_pb2 as pb


@pytest.mark.parametrize(
    ("fps", "held_fps", "words"), [(16, 0, "16"), (0, 0, "unpaced"), (16, 11.46, "11.5 of 16")]
)
def test_the_list_has_the_pace_and_what_is_held_of_it(fps: int, held_fps: float, words: str) -> None:
    assert _row(pb.Session(options=pb.SessionOptions(fps=fps), held_fps=held_fps))[5] == words


def test_who_watches_reads_the_pace_that_is_held() -> None:
    slowed = pb.Event(slowed=pb.Slowed(held_fps=11.46, reason="the replica has too much to do"))
    assert describe(slowed) == "11.5 frames/s: the replica has too much to do"

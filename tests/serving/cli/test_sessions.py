"""What `longtake sessions` prints of what others said, and of sessions that cannot be made at their pace."""

from __future__ import annotations

import asyncio

import pytest

from serving.cli.main import main
from serving.cli.sessions import _row, describe
from serving.client.aio import AsyncClient
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue
from tests.serving.fake_sessions import FakeServer, serving

SLY = "a \x1b[31m\x9b31m lake\n\u202eat dawn"


def test_a_list_and_a_watch_print_no_control_character_of_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    async def look() -> None:
        async with serving(FakeServer()) as address, AsyncClient(address) as client:
            session = await client.create(fps=0, cues=[Cue(0, Blend.of(SLY))])
            async with client.control(session, from_frame=0) as controller:
                await controller.start()
                async for event in controller:
                    if event.HasField("applied"):
                        break
            await asyncio.to_thread(main, ["sessions", "list", "--server", address])
            watching = asyncio.create_task(
                asyncio.to_thread(main, ["sessions", "watch", session.id, "--server", address])
            )
            await asyncio.sleep(1)
            await client.delete(session.id)
            await watching

    asyncio.run(look())
    said = capsys.readouterr().out
    assert "a \\x1b[31m\\x9b31m lake\\n\\u202eat dawn" in said
    assert all(line.isprintable() for line in said.split("\n"))


def test_a_state_that_only_a_newer_server_has_is_told_by_its_number() -> None:
    newer = pb.Session.FromString(b"\x10\x63")
    assert describe(pb.Event(state=newer)) == "state 99: next frame 0"


def test_a_watch_says_how_much_of_a_prompt_is_not_read_and_of_what_size_pictures_come() -> None:
    cue = pb.Cue(prompts=[pb.WeightedPrompt(text="a lake")])
    told = describe(pb.Event(applied=pb.AppliedCue(cue=cue, frame=33, cut_tokens=12)))
    assert told == "frame 33: a lake (too long: its last 12 tokens are not read)"
    assert describe(pb.Event(applied=pb.AppliedCue(cue=cue, frame=33))) == "frame 33: a lake"
    resized = pb.AppliedCue(cue=cue, frame=37, picture_size=pb.PictureSize(height=90, width=160))
    assert describe(pb.Event(applied=resized)) == "frame 37: a lake (opens anew, with pictures of 90x160)"


@pytest.mark.parametrize(
    ("fps", "held_fps", "words"), [(16, 0, "16"), (0, 0, "unpaced"), (16, 11.46, "11.5 of 16")]
)
def test_the_list_has_the_pace_and_what_is_held_of_it(fps: int, held_fps: float, words: str) -> None:
    assert _row(pb.Session(options=pb.SessionOptions(fps=fps), held_fps=held_fps))[5] == words


def test_who_watches_reads_the_pace_that_is_held() -> None:
    slowed = pb.Event(slowed=pb.Slowed(held_fps=11.46, reason="the replica has too much to do"))
    assert describe(slowed) == "11.5 frames/s: the replica has too much to do"

"""Sessions whose video decoder is lost, or is being taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.streaming.state import Block
from serving.errors import ReplicaLost
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import LocalDecoder
from serving.pipeline.video_decoder import DecoderStart
from serving.weights.loader import OpenedModel
from serving.worker.blocks import delivery
from tests.serving.worker.bench import at_work, chunks, events, run, spec, started

LOST_BLOCK = 2
END = 57


@pytest.fixture(scope="module")
def unhurt(pocket: OpenedModel) -> list[pb.Chunk]:
    """What a session is sent whose decoder stays."""
    seen: list[pb.Chunk] = []

    async def watch() -> None:
        async with at_work(pocket) as bench:
            seen.extend(await chunks(bench, await started(bench, spec(pocket)), END))

    run(watch())
    return seen


class Decoders:
    """The decoder at the bench, as if it were several: lost at a block until it was asked for `absent` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, absent: float = 0.0) -> None:
        self.absent, self.is_lost, self.leaves = absent, False, False
        self.opened: list[bool] = []
        self._open, self._decode = LocalDecoder.open, LocalDecoder.decode
        monkeypatch.setattr(LocalDecoder, "open", lambda *a, **named: self._opened(*a, **named))
        monkeypatch.setattr(LocalDecoder, "decode", lambda *a: self._decoded(*a))
        monkeypatch.setattr(LocalDecoder, "is_leaving", lambda *_: self._is_leaving())
        monkeypatch.setattr(delivery, "RETRY_S", 0.0)

    async def _is_leaving(self) -> bool:
        return self.leaves

    async def _opened(self, decoder: LocalDecoder, key: str, start: DecoderStart, *, moves: bool = False) -> None:
        if start.next_block:
            self.opened.append(moves)
            if len(self.opened) <= self.absent:
                raise ReplicaLost("none is there")
            await self._open(decoder, key, start)
            self.is_lost = self.leaves = False
            return
        await self._open(decoder, key, start)

    async def _decoded(self, decoder: LocalDecoder, key: str, block: Block, traceparent: str | None) -> Chunk:
        if block.number == LOST_BLOCK and not self.opened and self.absent:
            self.is_lost = True
        if self.is_lost:
            raise ReplicaLost("it is gone")
        return await self._decode(decoder, key, block, traceparent)


def resumed(found: list[pb.Event]) -> list[pb.Resumed]:
    return [event.resumed for event in found if event.HasField("resumed")]


async def watched(bench: Any, pocket: OpenedModel) -> list[pb.Event]:
    name = await started(bench, spec(pocket))
    return await events(bench, name, lambda event: event.chunk.first_frame + len(event.chunk.units) >= END)


def test_a_session_waits_for_another_decoder_for_as_long_as_one_takes_to_start(
    pocket: OpenedModel, unhurt: list[pb.Chunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = Decoders(monkeypatch, absent=20)

    async def wait() -> None:
        async with at_work(pocket) as bench:
            found = await watched(bench, pocket)
            assert [event.chunk for event in found if event.HasField("chunk")] == unhurt
            assert len(resumed(found)) == 1

    run(wait())
    assert len(decoders.opened) == 21


def test_a_session_for_which_no_decoder_comes_is_ended(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Decoders(monkeypatch, absent=float("inf"))

    async def wait() -> None:
        async with at_work(pocket, restart_s=0.3) as bench:
            with pytest.raises(ReplicaLost, match="no video decoder could be had within"):
                await watched(bench, pocket)

    run(wait())


def test_a_decoder_that_is_being_taken_away_is_left_before_it_is_lost(
    pocket: OpenedModel, unhurt: list[pb.Chunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = Decoders(monkeypatch)

    async def leave() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            decoders.leaves = True
            assert await chunks(bench, name, END) == unhurt

    run(leave())
    assert decoders.opened == [True]


def test_a_decoder_that_is_being_taken_away_goes_on_while_there_is_no_other(
    pocket: OpenedModel, unhurt: list[pb.Chunk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = Decoders(monkeypatch)

    async def stay() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            decoders.leaves, decoders.absent = True, float("inf")
            assert await chunks(bench, name, END) == unhurt

    run(stay())
    assert set(decoders.opened) == {True}

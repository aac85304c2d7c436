from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks import spectators
from benchmarks.measure.timing import Samples
from benchmarks.spectators import FACES, BlockEvents, Cost, Crowd, FakeReplicas, compare, encoded, measure

CROWD = Crowd(sessions=2, viewers=3, blocks=2)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sequence[BlockEvents]:
    monkeypatch.setattr(spectators, "WARM_UP", 1)
    monkeypatch.setattr(spectators, "HEIGHT", 32)
    monkeypatch.setattr(spectators, "WIDTH", 48)
    return encoded(1 + CROWD.blocks)


def test_both_faces_are_measured_before_and_now_per_block(sent: Sequence[BlockEvents]) -> None:
    costs = compare(CROWD, sent)
    assert costs.keys() == FACES.keys()
    assert all(len(cost.before.ms) == len(cost.now.ms) == CROWD.blocks for cost in costs.values())
    assert all(min(cost.before.ms + cost.now.ms) > 0 for cost in costs.values())


@pytest.mark.parametrize(("number", "streams"), [(0, 6), (1, 2)], ids=["before", "now"])
def test_there_is_a_stream_for_each_viewer_or_one_for_each_session(
    number: int, streams: int, sent: Sequence[BlockEvents], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_streams = []

    def send(self: FakeReplicas, block: BlockEvents, send=FakeReplicas.send) -> None:  # type: ignore[no-untyped-def]
        open_streams.append(self.streams)
        send(self, block)

    monkeypatch.setattr(FakeReplicas, "send", send)
    asyncio.run(measure(CROWD, FACES["gRPC"][number], sent))
    assert open_streams == [streams] * len(sent)


def test_a_cost_is_told_beside_the_one_before() -> None:
    told = Cost(Samples((0.05,)), Samples((0.005,))).as_json()
    assert (told["us_before"], told["us_now"], told["within_the_mark"]) == (50.0, 5.0, True)

"""The measurement of what a pass takes of the host."""

from __future__ import annotations

import json

from benchmarks.host_time import idle_stream, make_block, measure
from tests.support.readback import Readbacks


def test_the_passes_of_each_block_are_counted() -> None:
    result = measure(blocks=3)
    assert result.passes == 5
    assert len(json.loads(result.as_json())["block_ms"]) == 3


def test_nothing_is_read_back_between_two_launches() -> None:
    generator, stream = idle_stream()
    with Readbacks() as readbacks:
        make_block(generator, stream)
    assert readbacks.names == {}

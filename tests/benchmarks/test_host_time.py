"""The measurement of what a pass takes of the host."""

from __future__ import annotations

import json

from benchmarks.host_time import measure


def test_the_passes_of_each_block_are_counted() -> None:
    result = measure(blocks=3)
    assert result.passes == 5
    assert len(json.loads(result.as_json())["block_ms"]) == 3

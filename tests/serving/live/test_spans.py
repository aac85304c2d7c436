"""The spans of a real session's blocks, as a collector is sent them by the processes that its stages are in."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.serving.live.conftest import serving
from tests.serving.live.scenes import chunks, create, start, watch
from tests.serving.tracing.collector import Collector, collecting

pytestmark = pytest.mark.slow

STAGES = {"prompt", "denoise", "decode", "encode", "deliver", "standby"}
EXPORT_S = 30


def first_stages(collector: Collector) -> set[str]:
    """Of the first block, once all have been sent or time is up."""
    until, found = time.monotonic() + EXPORT_S, set[str]()
    while found != STAGES and time.monotonic() < until:
        time.sleep(0.2)
        found = {name for block in collector.blocks()[:1] for name in collector.stages(block)}
    return found


def test_a_collector_has_each_block_with_its_stages_from_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with serving(tmp_path, "--stages", "separate", "--slots", "1") as server:
            session = create(server.stub, fps=16, ahead=1)
            start(server.stub, session)
            chunks(watch(server.stub, session), 33)
            assert first_stages(collector) == STAGES
    (denoiser,), (decoder,) = collector.processes("denoise"), collector.processes("decode")
    assert denoiser != decoder
    assert collector.processes("block") == {denoiser}

from __future__ import annotations

import pytest

from engines.config.video_stream import as_run
from serving.config import ServerConfig
from serving.deployments.replicas.measured_capacity import measured_capacity
from serving.deployments.replicas.model_runtime import (
    build_decoder,
    build_denoising,
    load,
    streams,
    video_streams,
)
from serving.session.pacing import Pace
from serving.worker.capacity.capacity import Load

CONFIG = ServerConfig(model="tiny-taehv", slots=1)


def untold(stage: str, seconds: float) -> None:
    """Nobody asks for times."""


@pytest.mark.parametrize("cores", [1, 2])
def test_both_stages_are_measured_before_the_first_session(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr("serving.deployments.replicas.measured_capacity.usable_cores", lambda: cores)
    model, (own,) = load(CONFIG), streams(CONFIG)
    decoder = build_decoder(model, CONFIG, untold).decoder
    capacity = measured_capacity(CONFIG, model.model.config, build_denoising(model, CONFIG), decoder)
    denoise, deliver = capacity.denoising.expect(own, 0.0), capacity.delivering.expect(own, 0.0)
    assert 0 < denoise < 10
    assert 0 < deliver < 10
    assert decoder.decoder.keys == ()
    demand = capacity.demand(Load(own, Pace()), 0.0)
    assert (demand.denoise_s, demand.deliver_s) == ((denoise + deliver, 0.0) if cores == 1 else (denoise, deliver))


@pytest.mark.parametrize(("longest_s", "measured"), [(60.0, 2), (1e-6, 1)])
def test_a_size_that_is_warm_is_measured_by_itself_unless_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, longest_s: float, measured: int
) -> None:
    monkeypatch.setattr("serving.deployments.replicas.measured_capacity.LONGEST_S", longest_s)
    config = ServerConfig(model="tiny-taehv", slots=1, sizes=((32, 48),))
    model = load(config, ["transformer"])
    capacity = measured_capacity(config, model.model.config, build_denoising(model, config), None)
    assert len(capacity.denoising._first) == measured
    assert capacity.delivering.expect(streams(config)[0], 0.0) == 0.0


@pytest.mark.parametrize("cores", [1, 2])
def test_a_restyled_video_is_measured_in_both_loops_and_so_are_its_pictures(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr("serving.deployments.replicas.measured_capacity.usable_cores", lambda: cores)
    config = ServerConfig(model="pocket", slots=1, sizes=((32, 48),), video_loop="batch")
    model = load(config, ["transformer", "codec"])
    video, denoising = video_streams(config)[0], build_denoising(model, config)
    capacity = measured_capacity(config, model.model.config, denoising, None)
    demand, batch = capacity.demand(Load(video, Pace()).in_loop("batch"), 0.0), as_run(video, "batch")
    encode = capacity.encoding.expect(batch, 0.0)
    assert encode > 0
    assert demand.denoise_s == capacity.denoising.expect(batch, 0.0) + (encode if cores == 1 else 0.0)

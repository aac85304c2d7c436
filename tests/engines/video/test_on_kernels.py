"""Video streams on kernels, under Triton's interpreter, against the plain path and a recording."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.host_time import Idle, IdleRunner, record
from engines.config.presets import preset
from engines.config.video_stream import Loop, VideoStreamConfig
from engines.loading.model import Model
from engines.runner.fused import FusedRunner
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from kernels.dispatch import KernelBackends, backends_for, parse_backends
from tests.support.fake_capture import Recordings
from tests.support.generators import denoiser_for
from tests.support.readback import Readbacks
from tests.support.videos import roll_video

ATOL = 1e-5
"""For latents of about one, as for the recordings."""


@pytest.fixture(scope="module")
def tiny() -> Model:
    model = preset("tiny-taehv")
    return Model.random(replace(model, transformer=replace(model.transformer, layers=2)), seed=1)


def backends(names: str) -> KernelBackends:
    return backends_for(torch.device("cpu"), torch.float32, parse_backends(f"triton,linear=library{names}"))


def on_kernels(model: Model, names: str = "", recordings: Recordings | None = None) -> VideoGenerator:
    runner = FusedRunner(model.transformer, backends(names), recordings)
    return VideoGenerator(denoiser_for(model.transformer, batch=2, runner=runner))


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "replayed"])
@pytest.mark.parametrize("loop", ["plain", "batch"])
def test_kernels_make_what_the_plain_path_makes(
    loop: Loop, recorded: bool, tiny: Model, clip: VideoStreamConfig, prompts: list[Prompt]
) -> None:
    config = replace(clip, loop=loop, steps=(700, 500))
    plain = VideoGenerator(denoiser_for(tiny.transformer))
    wanted = roll_video(plain, plain.open(config), 9, {0: prompts[0], 4: prompts[1]})
    video = on_kernels(tiny, recordings=Recordings() if recorded else None)
    made = roll_video(video, video.open(config), 9, {0: prompts[0], 4: prompts[1]})
    for ours, theirs in zip(made, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=ATOL, rtol=0)


def test_windows_in_int8_stay_near(tiny: Model, clip: VideoStreamConfig, prompts: list[Prompt]) -> None:
    plain, video = on_kernels(tiny), on_kernels(tiny, ",keys=int8,values=int8")
    wanted, made = (
        torch.cat(roll_video(made_by, made_by.open(clip), 9, {0: prompts[0]})) for made_by in (plain, video)
    )
    assert 0 < (made - wanted).square().mean().sqrt() < 0.02 * wanted.square().mean().sqrt()


def test_nothing_is_read_back_in_the_loop(clip: VideoStreamConfig) -> None:
    transformer = Idle(preset("tiny").transformer)
    video = VideoGenerator(denoiser_for(transformer, runner=IdleRunner(transformer, record)))
    stream, prompt = video.open(clip), Prompt("", torch.ones(1, video.beside.config.text_dim))
    roll_video(video, stream, 6, {0: prompt})
    with Readbacks() as readbacks:
        roll_video(video, stream, 4, {7: Prompt("other", prompt.rows)})
        video.renew_sink(stream)
        roll_video(video, stream, 2, {})
    assert readbacks.names == {}

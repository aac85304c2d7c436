"""Stages of the pocket model's training: they learn, go on where they stopped, and end in time."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.config.networks import TAEHVConfig
from engines.config.presets import preset
from engines.errors import ConfigError
from engines.loading.loader import load_model
from engines.pocket.model_files import WEIGHTS, model_files, revision
from engines.pocket.training.dataset import Curriculum, Sample, Stretches, Teachers
from engines.pocket.training.flow_matching import FlowTraining, _levels, flow_losses, new_transformer
from engines.pocket.training.recipe import recipe
from engines.pocket.training.self_forcing import Rollouts
from engines.pocket.training.teacher_forcing import Stretch, Window
from engines.pocket.training.train import main
from engines.pocket.training.trainer import Budget, Losses, OutOfTime, Run, Workshop
from engines.pocket.training.vae import Crops, autoencoder_losses, prepare
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.vae.taehv import TAEHV
from engines.wan.transformer import CausalTransformer
from tests.support.generators import generator_for

CPU = torch.device("cpu")
POCKET = preset("pocket")
SMALL = replace(POCKET.transformer, dim=48, layers=2, heads=2, ffn_dim=96)
STREAM = replace(POCKET.stream, height=32, width=48)


def run_of(folder: Path, steps: int, deadline: float = float("inf")) -> tuple[Run, nn.Linear]:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    budget = Budget(steps, minutes=5, rate=0.1, warm_up=2, average=0.5)
    return Run("line", network, budget, {"steps": steps}, Workshop(folder, CPU, deadline)), network


def distance(network: nn.Module) -> Losses:
    x = torch.eye(3)
    return {"total": (network(x)[:, 0] - torch.tensor([1.0, 2.0, 3.0])).square().mean()}


def test_a_run_learns_and_keeps_its_curve(tmp_path: Path) -> None:
    run, network = run_of(tmp_path, steps=120)
    average = run.train(lambda _: distance(network))
    curve = [json.loads(line)["total"] for line in (tmp_path / "line.losses.jsonl").read_text().splitlines()]
    assert curve[-1] < 0.1 * curve[0]
    assert distance(average)["total"] < 0.1


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run, network = run_of(tmp_path, steps=30)
    run.train(lambda _: distance(network))
    again, resumed = run_of(tmp_path, steps=40)
    assert again.progress.step == 30
    torch.testing.assert_close(resumed.weight, network.weight)
    torch.testing.assert_close(again.average.state_dict(), run.average.state_dict())


def test_a_run_goes_on_from_the_average_alone(tmp_path: Path) -> None:
    run, network = run_of(tmp_path, steps=30)
    run.train(lambda _: distance(network))
    (tmp_path / "line.safetensors").unlink()
    again, resumed = run_of(tmp_path, steps=40)
    torch.testing.assert_close(resumed.state_dict(), run.average.state_dict())
    assert again.progress.step == 30


def test_a_run_ends_in_time_and_loses_nothing(tmp_path: Path) -> None:
    run, network = run_of(tmp_path, steps=1000, deadline=time.monotonic() - 1)
    with pytest.raises(OutOfTime, match="line has used 0% of its budget"):
        run.train(lambda _: distance(network))
    assert run_of(tmp_path, steps=1000)[0].progress.step == 1


@pytest.mark.parametrize("budget", [(0, 1.0, 0.5), (1, 0.0, 0.5), (1, 1.0, 1.0)])
def test_a_budget_of_nothing_is_refused(budget: tuple[int, float, float]) -> None:
    steps, minutes, average = budget
    with pytest.raises(ConfigError):
        Budget(steps, minutes, rate=0.1, average=average)


@torch.no_grad()
def test_the_autoencoder_starts_as_a_mosaic() -> None:
    torch.manual_seed(0)
    network = TAEHV(TAEHVConfig(decoder_widths=(24, 16, 16, 16), encoder_width=16, patch=8))
    prepare(network)
    picture = torch.rand(3, 8, 12).repeat_interleave(4, 1).repeat_interleave(4, 2)
    still = (0.4 + 0.2 * picture).expand(1, 9, -1, -1, -1)
    latents = network.encode(still, network.start_encoding()).latents
    seen = network.decode_raw(latents, network.start_decoding()).output
    # SoftClamp bends values away from gray a little.
    torch.testing.assert_close(seen, still, atol=0.01, rtol=0)


def test_an_autoencoder_without_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match="a patch of 1"):
        prepare(TAEHV(TAEHVConfig(decoder_widths=(8, 8, 8, 8), encoder_width=8)))


def test_the_autoencoder_learns_from_crops() -> None:
    torch.manual_seed(0)
    network = TAEHV(TAEHVConfig(decoder_widths=(24, 16, 16, 16), encoder_width=16, patch=8))
    prepare(network)
    settings = replace(recipe("test").autoencoder, batch=2)
    crops = next(iter(Crops(settings, CPU)))
    before, after = overfit(network, lambda: autoencoder_losses(network, crops, 0.0), steps=40, rate=2e-4)
    assert after < 0.97 * before


@pytest.fixture(scope="module")
def teachers() -> Teachers:
    torch.manual_seed(0)
    codec = TAEHV(TAEHVConfig(decoder_widths=(24, 16, 16, 16), encoder_width=16, patch=8))
    prepare(codec)
    tokenizer = Tokenizer.from_folder(WEIGHTS, POCKET.text_encoder.text_len)
    return Teachers(codec, UMT5Encoder(POCKET.text_encoder), tokenizer, POCKET.transformer.text_len)


def sample(teachers: Teachers, curriculum: Curriculum, batch: int = 2) -> Sample:
    return next(iter(Stretches(teachers, STREAM, curriculum, batch, seed=7, device=CPU)))


@pytest.mark.parametrize(
    ("curriculum", "stretch"),
    [
        (Curriculum(1, 0, 0, 0), Stretch((0,), (0,))),
        (Curriculum(0, 1, 0, 0), Stretch((0, 1, 2, 3), (0, 1, 2, 3))),
        (Curriculum(0, 0, 1, 0), Stretch((0, 4, 5, 6), (6,))),
    ],
)
def test_a_sample_holds_the_frames_of_its_stretch(
    teachers: Teachers, curriculum: Curriculum, stretch: Stretch
) -> None:
    drawn = sample(teachers, curriculum)
    assert drawn.stretch == stretch
    assert drawn.latents.shape == (2, 3 * len(stretch.numbers), 16, 4, 6)
    assert drawn.rows.shape == (2, 64, 128)


def test_a_switched_sample_denoises_only_what_follows_the_switch(teachers: Teachers) -> None:
    stretch = sample(teachers, Curriculum(0, 0, 0, 1)).stretch
    assert stretch.recached >= 1
    assert stretch.noisy == tuple(range(stretch.recached, 4))


def test_later_latents_do_not_show_that_the_encoder_has_just_begun(teachers: Teachers) -> None:
    stretches = Stretches(teachers, STREAM, Curriculum(0, 1, 0, 0), 1, seed=0, device=CPU)
    pictures = torch.rand(1, 49, 3, 32, 48)
    whole = stretches._encoded(pictures)
    late = stretches._encoded(pictures[:, 12:])
    torch.testing.assert_close(late[:, 3:], whole[:, 6:], atol=1e-4, rtol=0)


def test_the_transformer_learns_a_stretch(teachers: Teachers) -> None:
    transformer = new_transformer(SMALL, 0, CPU)
    drawn = sample(teachers, Curriculum(0, 0, 0, 1))
    settings = FlowTraining(Budget(1, 1, 1e-3), Curriculum(0, 0, 0, 1), batch=2)
    window = Window(STREAM, SMALL.head_dim, CPU)
    before, after = overfit(
        transformer, lambda: flow_losses(transformer, drawn, window, STREAM, settings), steps=60, rate=3e-3
    )
    assert after < 0.85 * before


def test_noise_levels_are_those_of_the_sampler() -> None:
    torch.manual_seed(0)
    drawn = _levels(torch.Size((50, 40)), (1.0, 0.9, 0.5), 0.4, CPU)
    assert drawn.unique().tolist() == pytest.approx([0.5, 0.9, 1.0])
    assert (drawn == 1.0).float().mean() == pytest.approx(0.4, abs=0.05)


def test_a_rollout_teaches_each_block_and_hands_on_no_gradient(teachers: Teachers) -> None:
    transformer = new_transformer(SMALL, 0, CPU)
    drawn = sample(teachers, Curriculum(0, 1, 0, 0, length=5))
    rollouts = Rollouts(transformer, STREAM, from_noise=0.5)
    before, after = overfit(transformer, lambda: rollouts.losses(drawn), steps=40, rate=3e-3)
    assert after < 0.8 * before
    assert not rollouts.losses(drawn)["distance"].requires_grad


def overfit(network: nn.Module, losses, steps: int, rate: float) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Mean total of the first and of the last ten of so many steps on one sample."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    totals: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = losses()["total"]
        total.backward()
        optimizer.step()
        totals.append(total.detach())
    return float(torch.stack(totals[:10]).mean()), float(torch.stack(totals[-10:]).mean())


def test_the_program_trains_a_model_that_generates(tmp_path: Path) -> None:
    main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu"])
    loaded = load_model(POCKET, model_files(tmp_path / "pocket"), "cpu", torch.float32)
    assert isinstance(loaded.model.transformer, CausalTransformer)
    report = json.loads((tmp_path / "pocket" / "training.json").read_text())
    assert list(report["stages"]) == ["autoencoder", "text", "first-blocks", "flow", "self-forcing"]
    generator = generator_for(loaded.model)
    assert generator.open(POCKET.stream).next_frame == 0


def test_the_program_trains_published_weights_on(tmp_path: Path) -> None:
    main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--from", str(WEIGHTS)])
    before, after = model_files(), model_files(tmp_path / "pocket")
    assert after.codec.read_bytes() == before.codec.read_bytes()
    assert after.transformer.read_bytes() != before.transformer.read_bytes()
    report = json.loads((tmp_path / "pocket" / "training.json").read_text())
    assert list(report["stages"]) == ["first-blocks", "flow", "self-forcing"]
    assert report["from"]["revision"] == revision()


def test_the_program_stops_in_time_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--minutes", "0"])
    assert "autoencoder has used" in caplog.text
    assert not (tmp_path / "pocket").exists()


def test_the_shipped_tokenizer_fits_the_text_encoder() -> None:
    tokenizer = Tokenizer.from_folder(WEIGHTS, POCKET.text_encoder.text_len)
    assert tokenizer.vocab <= POCKET.text_encoder.vocab
    assert np.max(tokenizer.encode("a red balloon")) < tokenizer.vocab

"""Stages of the pocket model's training: they learn, go on where they stopped, and end in time."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.config.networks import PatchVAEConfig
from engines.config.presets import preset
from engines.errors import ConfigError
from engines.loading.loader import load_model
from engines.pocket.model_files import WEIGHTS, model_files, revision
from engines.pocket.training.recipe import recipe
from engines.pocket.training.train import main
from engines.pocket.training.trainer import Budget, Losses, OutOfTime, Run, Workshop
from engines.pocket.training.transformer.channel_energy import channel_energy
from engines.pocket.training.transformer.dataset import WARM_UP, Curriculum, Reuse, Sample, Stretches, Teachers
from engines.pocket.training.transformer.energy_score import EnergyScore
from engines.pocket.training.transformer.flow_loss import FlowLoss
from engines.pocket.training.transformer.flow_matching import _levels, flow_losses, new_transformer
from engines.pocket.training.transformer.self_forcing import Rollouts, SelfForcingTraining
from engines.pocket.training.transformer.teacher_forcing import SequenceMemory, Stretch, Window
from engines.pocket.training.vae import Crops, Moments, autoencoder_losses, new_autoencoder
from engines.pocket.training.vae import random_clip as random_picture_clip
from engines.pocket.world.renderer import Renderer
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.vae.patch_vae import PatchVAE
from engines.wan.transformer import CausalTransformer
from tests.support.generators import generator_for

CPU = torch.device("cpu")
POCKET = preset("pocket")
SMALL = replace(POCKET.transformer, dim=96, layers=2, heads=4, ffn_dim=96, position_grid=(3, 2, 3))
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


TINY_VAE = PatchVAEConfig(encoder_widths=(16, 16), decoder_widths=(24, 16, 8))
AUTOENCODER = replace(recipe("test").autoencoder["autoencoder"], batch=2, start_clips=16)


@pytest.fixture(scope="module")
def started() -> PatchVAE:
    return new_autoencoder(TINY_VAE, AUTOENCODER, CPU)


@torch.no_grad()
def test_the_autoencoder_draws_pictures_before_it_is_trained(started: PatchVAE) -> None:
    clips = [random_picture_clip(np.random.default_rng(7)) for _ in range(2)]
    true = Renderer().render(clips, [0, 0], 13)
    latents = started.encode(true, started.start_encoding()).latents
    seen = started.decode(latents, started.start_decoding()).frames
    assert (seen - true).square().mean() < 0.1 * true.var()
    assert latents.std() == pytest.approx(1, abs=0.5)


def test_the_autoencoder_learns_from_crops(started: PatchVAE) -> None:
    network = deepcopy(started)
    crops, moments = next(iter(Crops(AUTOENCODER, (1,), CPU))), Moments(16, CPU)
    assert crops.clips.shape == (2, 5, 3, 32, 32)
    before, after = overfit(
        network, lambda: autoencoder_losses(network, crops, moments, AUTOENCODER), steps=40, rate=1e-3
    )
    assert after < 0.9 * before


def test_a_subject_counts_more_where_it_is() -> None:
    settings = replace(AUTOENCODER, crop=(96, 160), subject=3.0)
    _, weights = next(iter(Crops(settings, (2,), CPU)))
    assert weights.unique().tolist() == [1.0, 4.0]
    assert 0.005 < (weights > 1).float().mean() < 0.4


def test_running_moments_ask_for_mean_nought_and_variance_one() -> None:
    moments = Moments(2, CPU, decay=0.5)
    latents = torch.randn(1, 40, 2, 30, 30, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        right = moments.divergence(latents)
    assert right < 1e-3
    for _ in range(20):
        wrong = moments.divergence(2 * latents + 1)
    assert wrong > 0.5


@pytest.fixture(scope="module")
def teachers(started: PatchVAE) -> Teachers:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_folder(WEIGHTS, POCKET.text_encoder.text_len)
    return Teachers(started, UMT5Encoder(POCKET.text_encoder), tokenizer, POCKET.transformer.text_len)


def stretches(teachers: Teachers, curriculum: Curriculum, blocks: int = 2) -> Stretches:
    return Stretches(teachers, STREAM, curriculum, blocks, (7,), CPU, Reuse(kept=8, repeats=2))


def sample(teachers: Teachers, curriculum: Curriculum, blocks: int = 14) -> Sample:
    return next(iter(stretches(teachers, curriculum, blocks)))


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
    clips = 14 // (len(stretch.clean) + len(stretch.noisy))
    assert drawn.latents.shape == (clips, 3 * len(stretch.numbers), 16, 4, 6)
    assert drawn.rows.shape == (clips, 64, 128)


def test_a_switched_sample_denoises_only_what_follows_the_switch(teachers: Teachers) -> None:
    stretch = sample(teachers, Curriculum(0, 0, 0, 1)).stretch
    assert stretch.recached >= 1
    assert stretch.noisy == tuple(range(stretch.recached, 4))


def test_later_latents_do_not_show_that_the_encoder_has_just_begun(teachers: Teachers) -> None:
    pictures = torch.rand(1, 49, 3, 32, 48)
    late, whole = teachers.encode(pictures[:, 12:]), teachers.encode(pictures)
    torch.testing.assert_close(late[:, WARM_UP:], whole[:, 3 + WARM_UP :], atol=1e-4, rtol=0)


def test_an_error_in_the_first_component_costs_most(teachers: Teachers) -> None:
    energy = channel_energy(teachers.codec, POCKET.stream, CPU)
    assert energy.mean() == pytest.approx(1)
    assert energy[0] == energy.max() > 5
    assert energy[-1] < 0.2


def test_errors_count_by_channel_and_where_something_stands_out() -> None:
    loss = FlowLoss(torch.tensor([1.9, 0.1]), channel_power=0.5, standout=2.0)
    clean = torch.zeros(1, 1, 2, 2, 4)
    clean[..., 0, 1, 2] = 3.0
    errors = loss(torch.ones_like(clean), torch.zeros_like(clean), clean)[0, 0]
    assert errors[0].sum() / errors[1].sum() == pytest.approx((1.9 / 0.1) ** 0.5)
    assert errors[0, 1, 2] == errors[0].max()
    assert errors.mean() == pytest.approx(1, rel=1e-4)


def test_the_transformer_begins_by_returning_what_comes_in(teachers: Teachers) -> None:
    transformer = new_transformer(POCKET.transformer, 0, CPU)
    noise = torch.randn(1, 3, 16, 12, 20)
    drawn = Sample(noise, torch.zeros(1, 64, 128), Stretch((0,), (0,)))
    window = Window(POCKET.stream, POCKET.transformer.head_dim, CPU)
    context = SequenceMemory(transformer, drawn.rows, drawn.stretch, window)
    flow = transformer(noise, torch.full((1, 3), 1000.0), context)
    assert torch.corrcoef(torch.stack([flow.flatten(), noise.flatten()]))[0, 1] > 0.9


def test_the_transformer_learns_a_stretch(teachers: Teachers) -> None:
    transformer = new_transformer(SMALL, 0, CPU)
    drawn, loss = sample(teachers, Curriculum(0, 0, 0, 1)), FlowLoss(torch.ones(16), 0.0, 0.0)
    window = Window(STREAM, SMALL.head_dim, CPU)
    before, after = overfit(
        transformer, lambda: flow_losses(transformer, drawn, window, STREAM, loss, 0.15), steps=60, rate=3e-3
    )
    assert after < 0.85 * before


def test_noise_levels_are_those_of_the_sampler_and_all_alike() -> None:
    torch.manual_seed(0)
    drawn = _levels(torch.Size((50, 40)), (1.0, 0.9, 0.5), CPU)
    assert drawn.unique().tolist() == pytest.approx([0.5, 0.9, 1.0])
    assert (drawn == 1.0).float().mean() == pytest.approx(1 / 3, abs=0.05)


def test_a_rollout_teaches_each_block_and_hands_on_no_gradient(teachers: Teachers) -> None:
    transformer = new_transformer(SMALL, 0, CPU)
    drawn = sample(teachers, Curriculum(0, 1, 0, 0, length=5), blocks=18)
    settings = SelfForcingTraining(Budget(40, 1, 3e-3), batch=2, from_noise=0.5)
    rollouts = Rollouts(transformer, STREAM, settings, EnergyScore(torch.ones(16), 0.0))
    before, after = overfit(transformer, lambda: rollouts.losses(drawn), steps=40, rate=3e-3)
    assert after < 0.85 * before
    assert not rollouts.losses(drawn)["error"].requires_grad


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


STAGES = ["autoencoder", "autoencoder-whole", "text", "first-blocks", "stretches", "self-forcing"]


@pytest.mark.slow
def test_the_program_trains_a_model_that_generates(tmp_path: Path) -> None:
    main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu"])
    loaded = load_model(POCKET, model_files(tmp_path / "pocket"), "cpu", torch.float32)
    assert isinstance(loaded.model.transformer, CausalTransformer)
    report = json.loads((tmp_path / "pocket" / "training.json").read_text())
    assert list(report["stages"]) == STAGES
    generator = generator_for(loaded.model)
    assert generator.open(POCKET.stream).next_frame == 0


@pytest.mark.slow
def test_the_program_trains_a_published_transformer_on(tmp_path: Path) -> None:
    main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--from", str(WEIGHTS)])
    before, after = model_files(), model_files(tmp_path / "pocket")
    assert after.codec.read_bytes() == before.codec.read_bytes()
    assert after.transformer.read_bytes() != before.transformer.read_bytes()
    report = json.loads((tmp_path / "pocket" / "training.json").read_text())
    assert list(report["stages"]) == STAGES[3:]
    assert report["from"]["revision"] == revision()


def test_the_program_trains_the_stages_that_are_asked_for(tmp_path: Path) -> None:
    command = ["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--from", str(WEIGHTS)]
    main([*command, "--stages", "autoencoder-whole"])
    before, after = model_files(), model_files(tmp_path / "pocket")
    assert after.codec.read_bytes() != before.codec.read_bytes()
    assert after.transformer.read_bytes() == before.transformer.read_bytes()


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    command = ["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--from", str(WEIGHTS)]
    main([*command, "--stages", "first-blocks", "--processes", "2"])
    report = json.loads((tmp_path / "pocket" / "training.json").read_text())
    assert report["stages"]["first-blocks"]["progress"]["step"] == 2


def test_stages_that_no_recipe_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown stages last; the recipe has autoencoder, autoencoder-whole"):
        main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--stages", "last"])


def test_the_program_stops_in_time_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    main(["--recipe", "test", "--folder", str(tmp_path), "--device", "cpu", "--minutes", "0"])
    assert "autoencoder has used" in caplog.text
    assert not (tmp_path / "pocket").exists()


def test_the_shipped_tokenizer_fits_the_text_encoder() -> None:
    tokenizer = Tokenizer.from_folder(WEIGHTS, POCKET.text_encoder.text_len)
    assert tokenizer.vocab <= POCKET.text_encoder.vocab
    assert np.max(tokenizer.encode("a red balloon")) < tokenizer.vocab

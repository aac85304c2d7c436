"""The judge that is in the repository, on clips that it has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.judging.casting import FIRST_SEED
from benchmarks.judging.footage import rendered_pictures
from benchmarks.judging.frame_statistics import Bounds, looks
from benchmarks.judging.judge import CLIP_FRAMES, PICTURES, Judge, JudgeConfig, Reading, TrainedJudge, sampled
from benchmarks.train_judge import TEST_SEEDS, TRAINING_SEEDS, Clips, corrupted, labels
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Color, Light, Motion, Scene, Setting, Subject, Weather

CLIPS = 48
BAR = 0.94


@pytest.fixture(scope="module")
def judge() -> TrainedJudge:
    return TrainedJudge.load()


@pytest.fixture(scope="module")
def world() -> Renderer:
    return Renderer()


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """As many of each subject, with seeds at the end of the judge's own test."""
    random = np.random.default_rng(5)
    subjects = [list(Subject)[number % len(Subject)] for number in range(CLIPS)]
    seeds = TEST_SEEDS[-CLIPS:]
    return [Clip(replace(Scene.random(random), subject=s), seed) for s, seed in zip(subjects, seeds, strict=True)]


@pytest.fixture(scope="module")
def pictures(world: Renderer, clips: list[Clip]) -> Tensor:
    """Windows from the first frame to minutes after it."""
    return rendered_pictures(world, clips, [200 * number for number in range(CLIPS)])


@pytest.fixture(scope="module")
def readings(judge: TrainedJudge, pictures: Tensor) -> list[Reading]:
    return judge.network.read_sampled(pictures)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_it_reads_every_attribute(readings: list[Reading], clips: list[Clip], attribute: str) -> None:
    right = [
        read.values[attribute] == getattr(clip.scene, attribute)
        for read, clip in zip(readings, clips, strict=True)
    ]
    assert np.mean(right) >= BAR


@pytest.mark.parametrize("subject", Subject)
def test_it_knows_every_subject(readings: list[Reading], clips: list[Clip], subject: Subject) -> None:
    pairs = zip(readings, clips, strict=True)
    right = [read.values["subject"] == subject for read, clip in pairs if clip.scene.subject == subject]
    assert sum(right) >= len(right) - 1


def test_it_is_not_put_off_by_blur_noise_and_color(
    judge: TrainedJudge, pictures: Tensor, clips: list[Clip]
) -> None:
    worse = corrupted(pictures, torch.Generator().manual_seed(3))
    readings = judge.network.read_sampled(worse)
    right = [
        read.values[name] == getattr(clip.scene, name)
        for read, clip in zip(readings, clips, strict=True) for name in ATTRIBUTES
    ]  # fmt: skip
    assert np.mean(right) >= BAR


def test_it_reads_appearance_from_a_single_block(judge: TrainedJudge, pictures: Tensor, clips: list[Clip]) -> None:
    seen = judge.network.read_pictures(pictures[:, :4])
    right = [
        value == getattr(clip.scene, name)
        for one, clip in zip(seen, clips, strict=True) for name, values in one.items() for value in values
    ]  # fmt: skip
    assert np.mean(right) >= BAR


def test_it_reads_what_a_clip_has_turned_into(judge: TrainedJudge, world: Renderer) -> None:
    clip = Clip(_plain(), TEST_SEEDS[0], replace(_plain(), weather=Weather.SNOW, motion=Motion.CIRCLE), 100)
    (reading,) = judge.network.read_sampled(rendered_pictures(world, [clip], [130]))
    assert reading.values["weather"] == "snow"
    assert reading.values["motion"] == "circle"
    assert reading.values["subject"] == "balloon"


def _plain() -> Scene:
    return Scene(Subject.BALLOON, Color.RED, Motion.HOVER, Setting.HILLS, Light.NOON, Weather.CLEAR)


@pytest.fixture(scope="module")
def good(world: Renderer) -> Tensor:
    """A rendered clip with nothing wrong, [1, CLIP_FRAMES, 3, height, width]."""
    return world.render([Clip(_plain(), TEST_SEEDS[1])], [40], CLIP_FRAMES)


def test_a_good_clip_has_not_collapsed(judge: TrainedJudge, good: Tensor) -> None:
    (verdict,) = judge.judge(good)
    assert verdict.collapse is None
    assert verdict.wrong(_plain()) == {}


@pytest.mark.parametrize("collapse", ["flat", "noise", "still"])
def test_a_collapsed_clip_shows_nothing(judge: TrainedJudge, good: Tensor, collapse: str) -> None:
    broken = {
        "flat": good.mean(dim=(1, 3, 4), keepdim=True).expand_as(good) + 0.01 * torch.rand_like(good),
        "noise": torch.rand_like(good),
        "still": good[:, :1].expand_as(good),
    }[collapse]
    (verdict,) = judge.judge(broken)
    assert verdict.collapse == collapse
    assert not any(verdict.shows(_plain(), name) for name in ATTRIBUTES)


def test_flicker_is_noise(judge: TrainedJudge, good: Tensor) -> None:
    dark = torch.arange(CLIP_FRAMES) // 3 % 2
    (verdict,) = judge.judge(good * (1 - 0.5 * dark.view(1, -1, 1, 1, 1)))
    assert verdict.collapse == "noise"


def test_blur_lowers_sharpness_and_nothing_else(good: Tensor) -> None:
    pictures = sampled(good)
    blurred = torch.nn.functional.avg_pool2d(pictures.flatten(0, 1), 3, 1, padding=1, count_include_pad=False)
    (before,), (after,) = looks(pictures), looks(blurred.unflatten(0, pictures.shape[:2]))
    assert after.sharpness < 0.6 * before.sharpness
    assert after.motion == pytest.approx(before.motion, rel=0.2)
    assert after.contrast == pytest.approx(before.contrast, rel=0.2)


def test_it_refuses_clips_of_another_length(judge: TrainedJudge, good: Tensor) -> None:
    with pytest.raises(ValueError, match=f"the judge reads {CLIP_FRAMES} frames"):
        judge.network.read(good[:, :-1])


def test_its_own_accuracy_is_above_97_percent(judge: TrainedJudge) -> None:
    accuracy = judge.facts["accuracy"]["clean"]
    assert {name: share["share"] > 0.97 for name, share in accuracy.items()} == dict.fromkeys(ATTRIBUTES, True)


def test_a_saved_judge_reads_the_same(tmp_path: Path) -> None:
    network = Judge(JudgeConfig(widths=(4, 4, 4, 4), time_width=8)).eval()
    saved = TrainedJudge(network, Bounds(0.1, 0.2, 0.3, 0.4), {"accuracy": "unknown"})
    saved.save(tmp_path / "judge.safetensors")
    loaded = TrainedJudge.load(weights=tmp_path / "judge.safetensors")
    pictures = torch.rand(1, PICTURES, 3, 48, 80)
    assert loaded.network.read_sampled(pictures) == network.read_sampled(pictures)
    assert loaded.bounds == saved.bounds


def test_it_is_trained_and_measured_on_clips_of_its_own() -> None:
    assert TRAINING_SEEDS.stop <= TEST_SEEDS.start < TEST_SEEDS.stop <= FIRST_SEED


def test_a_drawn_window_after_a_switch_is_labelled_with_the_new_scene() -> None:
    drawn = Clips(TEST_SEEDS, 0)
    window = next(w for w in iter(drawn.draw, None) if w.clip.after is not None)
    assert window.shown == window.clip.after != window.clip.scene
    assert window.first_frame >= window.clip.switch_frame + 24
    assert labels([window])[0, 0] == list(Subject).index(window.shown.subject)

"""Clips restyled by the pocket model, through the command line."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from serving.cli.main import main
from tests.serving.media.clips.clips import Pictures, gray, quadrants, write_clip

TIMELINE = """
version: 1
height: 32
width: 48
cues:
  - frame: 0
    prompt: a red balloon hovering over rolling hills at noon under a clear sky
  - frame: 13
    prompt: a red balloon hovering over rolling hills at night under a clear sky
"""


@pytest.fixture
def timeline(tmp_path: Path) -> Path:
    path = tmp_path / "timeline.yaml"
    path.write_text(TIMELINE)
    return path


def restyle(timeline: Path, clip: Path, name: str = "film.mp4", *options: str) -> int:
    return main(["generate", str(timeline), "--input", str(clip), "-o", str(timeline.with_name(name)), *options])


def pictures_of(film: Path) -> list[Pictures]:
    with av.open(str(film)) as container:
        return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("count", "rate", "frames"),
    [
        (1, 24, 1),
        (72, 24, 48),
        (40, 16, 40),
        (50, 25, 32),
        (60, Fraction(30000, 1001), 32),
        (60, 30, 32),
        (60, 60, 16),
    ],
    ids=str,
)
def test_a_film_is_as_long_as_its_clip(
    timeline: Path, count: int, rate: Fraction | int, frames: int, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(count), rate)
    assert restyle(timeline, clip) == 0
    assert abs(len(pictures_of(tmp_path / "film.mp4")) - frames) <= 1


def test_a_film_is_as_long_as_its_clip_whose_rate_changes(timeline: Path, tmp_path: Path) -> None:
    times = [*range(0, 1000, 40), *range(1000, 3000, 100)]
    clip = write_clip(tmp_path / "clip.mkv", gray(len(times)), times_ms=times)
    assert restyle(timeline, clip) == 0
    assert abs(len(pictures_of(tmp_path / "film.mp4")) - 48) <= 1


def test_other_pictures_make_another_film_and_so_does_another_prompt(timeline: Path, tmp_path: Path) -> None:
    first, second = write_clip(tmp_path / "a.mp4", gray(24)), write_clip(tmp_path / "b.mp4", [quadrants()] * 24)
    assert restyle(timeline, first, "a-film.mp4") == restyle(timeline, second, "b-film.mp4") == 0
    timeline.write_text(TIMELINE.replace("night", "dusk"))
    assert restyle(timeline, first, "c-film.mp4") == 0
    a, b, c = (np.stack(pictures_of(tmp_path / f"{name}-film.mp4")).astype(float) for name in "abc")
    assert np.abs(a - b).mean() > 5
    assert np.abs(a - c)[:13].max() == 0
    assert np.abs(a - c)[13:].mean() > 1


def test_a_film_is_made_again_from_the_facts_inside_it_and_the_same_clip(timeline: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(24))
    assert restyle(timeline, clip, "film.mp4", "--fit", "stretch", "--noise-scale", "0.7") == 0
    facts = json.loads((tmp_path / "film.json").read_text())
    assert (facts["clip"]["file"], facts["clip"]["fit"]) == ("clip.mp4", "stretch")
    assert main(["generate", str(tmp_path / "film.mp4"), "-o", str(tmp_path / "again.mp4")]) == 0
    for ours, theirs in zip(pictures_of(tmp_path / "again.mp4"), pictures_of(tmp_path / "film.mp4"), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_film_is_not_made_again_of_another_clip(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(24))
    restyle(timeline, clip)
    shutil.copy(write_clip(tmp_path / "other.mp4", gray(20)), clip)
    assert main(["generate", str(tmp_path / "film.mp4"), "-o", str(tmp_path / "again.mp4")]) == 2
    assert "is not the clip that the film was made of" in capsys.readouterr().err


def test_a_clip_keeps_its_audio_where_that_is_asked_for(timeline: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(48), audio_s=2)
    assert restyle(timeline, clip, "film.mp4", "--keep-audio") == restyle(timeline, clip, "silent.mp4") == 0
    with av.open(str(tmp_path / "film.mp4")) as film, av.open(str(tmp_path / "silent.mp4")) as silent:
        assert (len(film.streams.audio), len(silent.streams.audio)) == (1, 0)
    assert main(["generate", str(tmp_path / "film.mp4"), "-o", str(tmp_path / "again.mp4")]) == 0


def test_a_sheet_has_the_input_above_the_output(timeline: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [quadrants()] * 24)
    assert restyle(timeline, clip, "film.mp4", "--sheet", str(tmp_path / "sheet.png"), "--fit", "stretch") == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"), dtype=float)
    red = (sheet[..., 0] > 200) & (sheet[..., 1:].max(axis=-1) < 60)
    assert red.sum() >= 32 * 48 // 5, "the clip's red quarter"


def test_a_length_that_is_asked_for_ends_the_film_before_its_clip(timeline: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(72))
    assert restyle(timeline, clip, "film.mp4", "--seconds", "1") == 0
    assert len(pictures_of(tmp_path / "film.mp4")) == 17, "whole blocks"


def test_a_cue_says_how_the_pictures_are_restyled_from_it_on(tmp_path: Path) -> None:
    clip, films = write_clip(tmp_path / "clip.mp4", gray(40)), []
    for number, restyling in enumerate(("", ", restyling: {noise_scale: 0.3, renews_sink: true}")):
        timeline = tmp_path / f"timeline{number}.yaml"
        timeline.write_text(
            "model: pocket\nseed: 7\nheight: 32\nwidth: 48\ncues:\n  - {frame: 0, prompt: a red balloon}\n"
            f"  - {{frame: 13, prompt: a red balloon{restyling}}}\n"
        )
        assert restyle(timeline, clip, f"film{number}.mp4") == 0
        films.append(np.stack(pictures_of(tmp_path / f"film{number}.mp4")).astype(int))
    same = np.abs(films[0] - films[1]).mean(axis=(1, 2, 3))
    assert same[:13].max() == 0
    assert same[13:].min() > 0


def test_a_film_that_is_cut_shows_nothing_of_what_was_before(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.yaml"
    timeline.write_text(
        "model: pocket\nseed: 7\nheight: 32\nwidth: 48\ncues:\n  - {frame: 0, prompt: a red balloon}\n"
        "  - {frame: 13, prompt: a red balloon, restyling: {cuts: true}}\n"
    )
    films = []
    for number, before in enumerate((gray(13), [quadrants()] * 13)):
        clip = write_clip(tmp_path / f"clip{number}.mp4", [*before, *gray(17)], 16)
        assert restyle(timeline, clip, f"film{number}.mp4") == 0
        films.append(np.stack(pictures_of(tmp_path / f"film{number}.mp4")).astype(int))
    apart = np.abs(films[0] - films[1]).mean(axis=(1, 2, 3))
    assert len(apart) == 30
    assert apart[:13].min() > 3
    assert apart[13:].max() < 1


def test_a_film_of_scopes_restyler_is_restyled_as_it_says_unless_an_option_does(tmp_path: Path) -> None:
    timeline, clip = tmp_path / "timeline.json", write_clip(tmp_path / "clip.mp4", gray(24), 16)
    segments = [{"startTime": at, "endTime": at + 0.75, "text": f"a balloon {at}"} for at in (0, 0.75)]
    settings = {"noiseScale": 0.6, "noiseController": False, "manageCache": True}
    size = {"pipelineId": "streamdiffusionv2", "resolution": {"height": 32, "width": 48}}
    timeline.write_text(json.dumps({"version": "2.0", "prompts": segments, "settings": settings | size}))
    assert restyle(timeline, clip) == restyle(timeline, clip, "other.mp4", "--noise-scale", "0.3") == 0
    said, asked = (
        [cue.get("restyling") for cue in json.loads((tmp_path / name).read_text())["timeline"]["cues"]]
        for name in ("film.json", "other.json")
    )
    assert said == [{"noise_scale": 0.6, "follows_motion": False}, {"cuts": True}]
    assert asked == [{"follows_motion": False}, {"cuts": True}]
    films = [np.stack(pictures_of(tmp_path / name)).astype(float) for name in ("film.mp4", "other.mp4")]
    assert np.abs(films[0] - films[1]).mean() > 1


def test_restyling_without_a_clip_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timeline = tmp_path / "timeline.yaml"
    timeline.write_text("seconds: 1\ncues:\n  - {frame: 0, prompt: a boat, restyling: {noise_scale: 0.3}}\n")
    assert main(["generate", str(timeline), "-o", str(tmp_path / "film.mp4")]) == 2
    assert "cues[0].restyling: there are no pictures; name a clip with --input" in capsys.readouterr().err


def test_a_model_that_only_restyles_wants_a_clip(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(timeline), "--model", "streamdiffusionv2-1.3b", "-o", str(tmp_path / "film.mp4")]
    assert main(command) == 2
    assert "only restyles videos: `longtake generate --input CLIP` does that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "longlive-1.3b"), "longlive-1.3b makes videos from prompts alone"),
        (("--decoder-engine", "onnx"), "a clip is restyled with PyTorch's decoder; leave --decoder-engine"),
        (("--denoiser-engine", "onnx"), "a clip is restyled by PyTorch's passes; leave --denoiser-engine out"),
        (("--snapshot-every", "5"), "goes on from no snapshot, and leaves none"),
        (("--keep-audio",), "has no audio to keep; leave --keep-audio out"),
        (("--noise-scale", "2"), "noise_scale 2.0 is outside 0..1"),
        (("--input", "nothing.mp4"), "the clip nothing.mp4 cannot be read"),
    ],
)
def test_what_cannot_be_restyled_is_refused(
    timeline: Path, tmp_path: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(5))
    assert restyle(timeline, clip, "film.mp4", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "film.mp4").exists()

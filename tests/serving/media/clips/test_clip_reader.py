"""Clips of any rate are read as the frame shown at each sixteenth of a second; what cannot be read says so."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from serving.errors import ClipError
from serving.media.clips.clip_reader import ClipLimits, open_clip
from tests.serving.media.clips.clips import HEIGHT, WIDTH, gray, levels, write_clip

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("rate", [8, 16, 24, 25, NTSC, 30, 60])
def test_picture_k_is_the_frame_shown_at_k_sixteenths(tmp_path: Path, rate: Fraction | int, ending: str) -> None:
    clip = write_clip(tmp_path / f"clip.{ending}", gray(60), rate)
    shown = levels(clip)
    assert len(shown) == pytest.approx(60 / rate * 16, abs=1)
    for k, number in enumerate(shown):
        # Matroska rounds times to a millisecond.
        assert number in {int(Fraction(k, 16) * rate + jitter * Fraction(rate) / 1000) for jitter in (-1, 0, 1)}


def test_frames_at_uneven_times_stay_until_the_next_one(tmp_path: Path) -> None:
    times = [0, 30, 260, 1000, 1010, 1020, 1500]
    shown = levels(write_clip(tmp_path / "clip.mkv", gray(7), times_ms=times))
    assert shown[:24] == [max(n for n, time in enumerate(times) if time <= k * 62.5) for k in range(24)]
    assert 25 <= len(shown) <= 26


def test_a_clock_that_starts_late_or_early_counts_from_the_first_frame(tmp_path: Path) -> None:
    late = write_clip(tmp_path / "late.mkv", gray(3), times_ms=[5000, 5500, 6000])
    assert levels(late)[:16] == [0] * 8 + [1] * 8
    with open_clip(late, HEIGHT, WIDTH) as clip:
        assert clip.facts.start_s == 5


def test_a_still_is_one_picture(tmp_path: Path) -> None:
    assert levels(write_clip(tmp_path / "one.mp4", gray(1))) == [0]
    Image.fromarray(gray(3)[2]).save(tmp_path / "still.png")
    assert levels(tmp_path / "still.png") == [2] or levels(tmp_path / "still.png") == [2, 2]


def test_a_long_clip_is_read_no_further_than_asked(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", gray(1) * 20, times_ms=range(0, 20 * 500_000, 500_000))
    with open_clip(path, HEIGHT, WIDTH) as clip:
        assert len(list(itertools.islice(clip, 100))) == 100


def test_facts_say_what_the_file_is(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", gray(30, 333 - 1, 517 - 1), 30, audio_s=1, turned=(90, False, False))
    with open_clip(path, HEIGHT, WIDTH) as clip:
        facts = clip.facts
    assert (facts.height, facts.width, facts.rate, facts.has_audio) == (516, 332, Fraction(30), True)
    assert facts.duration_s == pytest.approx(1, abs=0.04)


def test_a_clip_that_is_cut_off_gives_what_it_has_and_says_where_it_ends(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, HEIGHT, WIDTH, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mkv", list(noise), 24)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    front = write_clip(tmp_path / "whole.mp4", list(noise), 24)
    with open_clip(front, HEIGHT, WIDTH) as clip:
        assert (len(list(clip)), clip.warnings) == (40, ())
    with open_clip(path, HEIGHT, WIDTH) as clip:
        assert 10 < len(list(clip)) < 30
        assert any("ends early, at" in warning for warning in clip.warnings)


def broken(folder: Path, name: str) -> Path:
    """A file that is no clip, by its name."""
    path = folder / name
    match name:
        case "folder.mp4":
            path.mkdir()
        case "empty.mp4":
            path.touch()
        case "noise.mp4":
            path.write_bytes(np.random.default_rng(0).bytes(5000))
        case "text.txt":
            path.write_text("a fox runs\n" * 100)
        case "half.mp4":
            whole = write_clip(path, gray(30)).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "huge.png":
            Image.new("L", (9000, 9000)).save(path)
        case "ribbon.png":
            Image.new("L", (2000, 16)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.mp4", "does not exist"),
        ("folder.mp4", "is a directory"),
        ("empty.mp4", "cannot be read as a video"),
        ("noise.mp4", "cannot be read as a video"),
        ("text.txt", "name a video file"),
        ("half.mp4", "cannot be read as a video"),
        ("huge.png", "9000x9000, 81000000 pixels; at most 35389440 are read"),
        ("ribbon.png", "2000x16; one side may be at most 16 times"),
    ],
)
def test_what_is_no_clip_is_refused_in_a_sentence(tmp_path: Path, name: str, problem: str) -> None:
    path = broken(tmp_path, name)
    with pytest.raises(ClipError, match=problem) as caught:
        open_clip(path, HEIGHT, WIDTH)
    assert str(caught.value).startswith(str(path))


def test_audio_alone_is_no_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match="only audio"):
        open_clip(tmp_path / "song.m4a", HEIGHT, WIDTH)


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", gray(1))
    with pytest.raises(ClipError, match="at most 100 are read"):
        open_clip(path, HEIGHT, WIDTH, limits=ClipLimits(max_bytes=100))
    with pytest.raises(ValueError, match="max_pixels is 0"):
        ClipLimits(max_pixels=0)

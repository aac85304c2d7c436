"""Frames are shown as wide, and turned, as their stream or file says."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from serving.errors import ClipError
from serving.media.clips.clip_reader import open_clip
from serving.media.clips.shown_frame import Picture
from tests.serving.media.clips.clips import Part, quadrants, write_joined
from tests.serving.worker.pictures.clips import h264, picture


def bright(picture: Picture) -> tuple[int, int]:
    """Height and width of what is not black."""
    shown = picture[..., 0] > 100
    return int(shown.any(1).sum()), int(shown.any(0).sum())


@pytest.mark.parametrize("ending", ["ts", "mkv", "mp4", "h264"])
def test_every_frame_of_a_clip_is_fitted_from_its_own_size(tmp_path: Path, ending: str) -> None:
    parts = [Part(48, 96), Part(96, 48), Part(96, 48, Fraction(4)), Part(96, 48, Fraction(2)), Part(48, 48)]
    clip = write_joined(tmp_path / f"clip.{ending}", *parts)
    with open_clip(clip, 96, 96, "fit") as opened:
        shown = [bright(picture) for picture in opened]
        assert (opened.facts.height, opened.facts.width) == (48, 96)
    assert [shown[16 * part + 8] for part in range(5)] == [(48, 96), (96, 48), (48, 96), (96, 96), (96, 96)]
    assert [k for k in range(1, 80) if shown[k] != shown[k - 1]] == [16, 32, 48]


def test_pixels_of_which_nothing_is_said_any_more_are_square(tmp_path: Path) -> None:
    clip = write_joined(tmp_path / "clip.ts", Part(48, 96, Fraction(1, 2)), Part(48, 96))
    with open_clip(clip, 96, 96, "fit") as opened:
        shown = [bright(picture) for picture in opened]
    assert shown == [(96, 96)] * 16 + [(48, 96)] * 16


def test_a_clip_that_becomes_a_ribbon_is_refused_there(tmp_path: Path) -> None:
    clip = write_joined(tmp_path / "clip.ts", Part(48, 96), Part(48, 96, Fraction(9)))
    problem = "shown as 864x48; one side may be at most 16 times the other: correct .* of its pixels, 9:1"
    with open_clip(clip, 96, 96) as opened, pytest.raises(ClipError, match=problem):
        list(opened)


def test_what_a_clip_crops_is_not_shown(tmp_path: Path) -> None:
    clip = tmp_path / "clip.h264"
    clip.write_bytes(b"".join(h264(2, crop="8,10,0,0")))
    with open_clip(clip, 86, 152) as opened:
        assert (opened.facts.height, opened.facts.width) == (86, 152)
        assert np.abs(next(iter(opened)) - picture(0)[10:, 8:].astype(float)).mean() < 1


def test_an_absurd_aspect_ratio_is_taken_for_none(tmp_path: Path) -> None:
    clip = write_joined(tmp_path / "clip.ts", Part(48, 96, Fraction(1, 65535)))
    with open_clip(clip, 96, 96, "fit") as opened:
        assert bright(next(iter(opened))) == (48, 96)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path, kind: str, orientation: int) -> None:
    photograph, exif = Image.fromarray(quadrants()), Image.Exif()
    exif[0x112] = orientation
    photograph.save(tmp_path / f"still.{kind}", exif=exif, quality=95)
    with Image.open(tmp_path / f"still.{kind}") as saved:
        meant = np.asarray(ImageOps.exif_transpose(saved).convert("RGB"))
    with open_clip(tmp_path / f"still.{kind}", *meant.shape[:2]) as opened:
        assert np.abs(next(iter(opened)).astype(int) - meant).mean() < 3

"""Frames of any size, format and orientation become the same picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from serving.media.clips.clip_reader import open_clip
from serving.media.clips.picture_scaler import Fit
from serving.media.clips.shown_frame import Picture
from tests.serving.media.clips.clips import HEIGHT, WIDTH, quadrants, write_clip

COLORS = [(180, 60, 40), (40, 160, 90), (30, 70, 200), (120, 120, 120)]


def first(path: Path, height: int = HEIGHT, width: int = WIDTH, fit: Fit = "fill") -> Picture:
    with open_clip(path, height, width, fit) as clip:
        return next(iter(clip))


def bars() -> Picture:
    """A picture of four upright bars."""
    return np.repeat(np.array(COLORS, np.uint8)[None], HEIGHT, 0).repeat(WIDTH // 4, 1)


def assert_bars(shown: Picture) -> None:
    """Require the colors of the bars in their middles, within 3 of 255."""
    assert np.abs(shown[:, 12::24].astype(int) - np.array(COLORS)).max() <= 3


def corners(picture: Picture) -> list[list[int]]:
    """The colors of three quadrants, in their middles, 0 or 1 in red, green, blue."""
    height, width = picture.shape[:2]
    places = [(height // 4, width // 4), (height // 4, -width // 4), (-height // 4, width // 4)]
    return [(picture[place] > 128).astype(int).tolist() for place in places]


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("libx264", "yuv420p"), ("libx264", "yuv444p"), ("libx264", "yuv420p10le"), ("libx265", "yuv420p10le"),
        ("ffv1", "yuv422p10le"), ("ffv1", "yuva420p"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
@pytest.mark.parametrize("full_range", [False, True])
def test_colors_are_right_in_every_format(
    tmp_path: Path, codec: str, pixels: str, matrix: Colorspace, full_range: bool
) -> None:
    clip = write_clip(
        tmp_path / "clip.mkv", [bars()], codec=codec, pixels=pixels, matrix=matrix, full_range=full_range
    )
    assert_bars(first(clip))


@pytest.mark.parametrize("pixels", ["bgr0", "gbrp10le"])
def test_pictures_in_rgb_stay_as_they_are(tmp_path: Path, pixels: str) -> None:
    assert_bars(first(write_clip(tmp_path / "clip.mkv", [bars()], codec="ffv1", pixels=pixels)))


def test_gray_is_gray(tmp_path: Path) -> None:
    drawn = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    clip = write_clip(tmp_path / "clip.mkv", [drawn], codec="ffv1", pixels="gray", full_range=True)
    assert np.abs(first(clip).astype(int) - 90).max() <= 3


R, G, B, W = [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]


@pytest.mark.parametrize(
    ("turned", "seen"),
    [
        ((0, False, False), [R, G, B]), ((90, False, False), [G, W, R]), ((180, False, False), [W, B, G]),
        ((-90, False, False), [B, R, W]), ((0, True, False), [G, R, W]), ((0, False, True), [B, W, R]),
        ((90, True, False), [W, G, B]), ((90, False, True), [R, B, G]),
    ],
)  # fmt: skip
def test_a_clip_is_turned_as_its_matrix_says(
    tmp_path: Path, turned: tuple[int, bool, bool], seen: list[list[int]]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [quadrants()] * 2, turned=turned)
    assert corners(first(clip, fit="stretch")) == seen
    with open_clip(clip, HEIGHT, WIDTH) as opened:
        assert (opened.facts.height > opened.facts.width) == (abs(turned[0]) == 90)


def test_a_picture_is_letterboxed_cropped_or_stretched(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [np.full((HEIGHT, WIDTH, 3), 200, np.uint8)])
    fit, fill = first(clip, 96, 96, "fit"), first(clip, 96, 96, "fill")
    assert fit[:16].max() == 0 == fit[80:].max()
    assert fit[17:79].min() > 195
    assert fill.min() > 195
    assert corners(first(write_clip(clip, [quadrants()]), 32, 200, "stretch")) == [R, G, B]


def test_fill_keeps_the_centre(tmp_path: Path) -> None:
    drawn = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn[:, 16:80] = 250
    assert first(write_clip(tmp_path / "clip.mp4", [drawn]), 32, 32)[:, 2:-2].min() > 230


def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [quadrants()], pixel_aspect=Fraction(2, 1))
    with open_clip(clip, HEIGHT, WIDTH, "fit") as opened:
        picture = next(iter(opened))
        assert (opened.facts.height, opened.facts.width) == (64, 192)
    assert picture[:15].max() == 0
    assert picture[18:46].max() == 255


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    drawn = np.full((333, 517, 3), 77, np.uint8)
    shown = first(write_clip(tmp_path / "clip.mkv", [drawn], pixels="yuv444p"), 480, 832)
    assert shown.shape == (480, 832, 3)
    assert np.abs(shown.astype(int) - 77).max() <= 3


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 1), (1, 16)])
def test_a_picture_may_be_one_pixel_wide(tmp_path: Path, ending: str, height: int, width: int) -> None:
    Image.new("RGB", (width, height), (77, 77, 77)).save(tmp_path / f"still.{ending}")
    assert np.abs(first(tmp_path / f"still.{ending}").astype(int) - 77).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_behind_a_transparent_picture_it_is_black(tmp_path: Path, mode: str) -> None:
    drawn = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    drawn[:, : WIDTH // 2, 3] = 0
    drawn[:, : WIDTH // 2, :3] = 255 if "A" in mode else 0
    image = Image.fromarray(drawn)
    if mode == "I;16":
        image = Image.fromarray(drawn[..., 0].astype(np.uint16) * 257)
    image.convert(mode).save(tmp_path / "still.png", transparency=0 if mode == "P" else None)
    shown = first(tmp_path / "still.png")
    assert shown[:, :46].max() == 0
    assert shown[:, 50:].min() == 255


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_a_jpeg_of_other_colors_is_read(tmp_path: Path, mode: str) -> None:
    drawn = Image.fromarray(bars()).convert(mode)
    drawn.save(tmp_path / "still.jpg", quality=98)
    meant = np.asarray(drawn.convert("RGB")).astype(int)
    assert np.abs(first(tmp_path / "still.jpg") - meant)[:, 12::24].max() <= 3


def test_fine_detail_is_averaged_when_it_is_made_small(tmp_path: Path) -> None:
    drawn = np.zeros((640, 960, 3), np.uint8)
    drawn[:, ::2] = 255
    shown = first(write_clip(tmp_path / "clip.mkv", [drawn], codec="ffv1", pixels="bgr0"), 64, 96)
    assert np.abs(shown[4:-4, 4:-4].astype(int) - 127).max() <= 3

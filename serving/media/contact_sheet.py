"""A picture sheet: frames of a film on one page, each under its frame number and the prompt in force."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from serving.media.whole_file import whole_file

COLUMNS = 4
CAPTION_LINES = 3
LINE_HEIGHT_PX = 12
CHARACTER_WIDTH_PX = 6
MARGIN_PX = 6
MIN_CELL_WIDTH_PX = 160


class Still(NamedTuple):
    """One picture [height, width, 3] uint8, where it lies in the film, and its prompt."""

    frame: int
    prompt: str
    picture: Tensor


def write_sheet(path: Path, stills: Sequence[Still]) -> None:
    """Write `stills`, all of one size, as a PNG or whatever the file's ending says."""
    height, width = stills[0].picture.shape[:2]
    zoom = -(-MIN_CELL_WIDTH_PX // width)
    cell_width = width * zoom + MARGIN_PX
    cell_height = height * zoom + CAPTION_LINES * LINE_HEIGHT_PX + 2 * MARGIN_PX
    rows = -(-len(stills) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * cell_width + MARGIN_PX, rows * cell_height + MARGIN_PX), "white")
    draw = ImageDraw.Draw(page)
    for number, still in enumerate(stills):
        left = MARGIN_PX + number % COLUMNS * cell_width
        top = MARGIN_PX + number // COLUMNS * cell_height
        picture = Image.fromarray(still.picture.numpy())
        page.paste(picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height * zoom + 2), _caption(still, width * zoom), fill="black", font_size=10)
    with whole_file(path) as place:
        page.save(place)


def _caption(still: Still, width_px: int) -> str:
    text = f"{still.frame}: {still.prompt}"
    lines = textwrap.wrap(text, width_px // CHARACTER_WIDTH_PX, max_lines=CAPTION_LINES, placeholder=" ...")
    return "\n".join(lines)

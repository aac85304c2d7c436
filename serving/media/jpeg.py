"""Single pictures as JPEG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 90


def write_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture [height, width, 3] in RGB."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def read_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Undo `write_jpeg`, as far as JPEG does."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))

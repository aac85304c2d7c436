"""A source of pictures: pushed to a session at their rate, whatever comes back."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.client.interactive import InteractiveSession
from serving.media.chunk import FRAMES_PER_SECOND
from serving.media.clips.clip_reader import open_clip

JPEG_QUALITY = 90


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture [height, width, 3] in RGB."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


def clip_pictures(path: Path, height: int, width: int) -> Iterator[bytes]:
    """The pictures of a video file as JPEG, sixteen a second. Raises ClipError where it has none to read."""
    with open_clip(path, height, width) as clip:
        for picture in clip:
            yield jpeg(picture)


async def push(controller: InteractiveSession, pictures: Iterable[bytes]) -> None:
    """Send JPEG pictures, sixteen a second, and say when there are no more."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for number, picture in enumerate(pictures):
        at = number / FRAMES_PER_SECOND
        await asyncio.sleep(began + at - clock())
        await controller.send_picture(picture, "jpeg", round(1e6 * at))
    await controller.end_input()


@asynccontextmanager
async def pushing(controller: InteractiveSession, pictures: Iterable[bytes]) -> AsyncIterator[None]:
    """Push pictures for as long as the block runs; what fails in it ends the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(push(controller, pictures))
        try:
            yield
        finally:
            task.cancel()

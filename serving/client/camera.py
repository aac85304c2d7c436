"""A source of pictures: pushed to a session at their rate, whatever comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from serving.client.interactive import InteractiveSession, PictureFormat
from serving.media.chunk import FRAMES_PER_SECOND
from serving.media.clips.clip_reader import open_clip
from serving.media.jpeg import write_jpeg


def clip_pictures(path: Path, height: int, width: int) -> Iterator[bytes]:
    """The pictures of a video file as JPEG, sixteen a second. Raises ClipError where it has none to read."""
    with open_clip(path, height, width) as clip:
        for picture in clip:
            yield write_jpeg(picture)


async def push(
    controller: InteractiveSession, pictures: Iterable[bytes], format: PictureFormat = "jpeg",
    rate: float = FRAMES_PER_SECOND, sent: Callable[[int, float], None] | None = None,
) -> None:  # fmt: skip
    """Send pictures at their rate, and say when there are no more.

    Where the connection is too slow pictures are left out, but none of "h264", which the next ones need. `sent` is
    told of each its id and when it was sent, by the clock of the event loop.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    for number, picture in enumerate(pictures):
        await asyncio.sleep(began + number / rate - clock())
        at = clock()
        if format != "h264" and at - began > (number + 1) / rate:
            continue
        name = await controller.send_picture(picture, format, round(1e6 * number / rate))
        if sent is not None:
            sent(name, at)
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

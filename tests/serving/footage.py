"""Pictures and chunks for tests of video, and what a player shows of them."""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from serving.media.chunk import Chunk
from serving.media.encoder import ChunkEncoder
from serving.media.film_file import Made

HEIGHT, WIDTH = 48, 64

Pictures = NDArray[np.uint8]


class Shown(NamedTuple):
    """What a player shows of a file: the frames' times in sixteenths of a second, and their pictures."""

    times: list[float]
    pictures: Pictures


class MadeOf(NamedTuple):
    """Facts of a film, for tests."""

    prompt: str

    def document(self, made: Made | None = None) -> dict[str, Any]:
        """As those of `longtake generate`, with less in them."""
        begun = {"longtake": "1", "cues": [self.prompt]}
        return begun if made is None else begun | {"frames_made": made.frames, "complete": made.complete}


def blocks() -> list[Pictures]:
    """A block of 9 and two of 12 pictures: a bright square moves over a ramp."""
    ramp = np.linspace(0, 120, WIDTH).astype(np.uint8)[None, None, :, None]
    pictures = np.broadcast_to(ramp, (33, HEIGHT, WIDTH, 3)).copy()
    for number in range(33):
        pictures[number, 10:20, number : number + 10] = 250
    return np.split(pictures, [9, 21])


def chunks(skip: int = 0) -> list[Chunk]:
    """The blocks as chunks, as they come from a take of which `skip` blocks of 12 were made before."""
    encoder = ChunkEncoder(HEIGHT, WIDTH)
    starts = [12 * skip, 12 * skip + 9, 12 * skip + 21]
    return [
        encoder.encode(skip + n, start, block)
        for n, (start, block) in enumerate(zip(starts, blocks(), strict=True))
    ]


def decoded(*chunks: Chunk) -> Pictures:
    """The pictures in chunks, decoded from the first on."""
    decoder = av.CodecContext.create("h264", "r")
    units = [unit.data for chunk in chunks for unit in chunk.units]
    frames = [frame for data in units for frame in decoder.decode(av.Packet(data))] + decoder.decode(None)
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def played(file: str | BinaryIO) -> Shown:
    """What a player shows of an MP4."""
    with av.open(file, "r") as container:
        frames = list(container.decode(video=0))
    times = [16 * frame.time for frame in frames]
    return Shown(times, np.stack([frame.to_ndarray(format="rgb24") for frame in frames]))

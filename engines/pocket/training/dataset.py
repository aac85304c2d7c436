"""What the transformer learns from: stretches of encoded clips, each with the rows of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from engines.config.geometry import pixel_frames
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.pocket.training.teacher_forcing import Stretch, WindowBlocks
from engines.pocket.training.text_encoder import embed
from engines.pocket.world.captions import caption, change_caption
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Scene
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.vae.taehv import TAEHV

LATEST_FRAME = 20_000
"""Of a clip, after which no later part of a stream is taken from it: twenty minutes."""

WARM_UP = 3
"""Latent frames that an encoder has to see before it no longer matters that it saw nothing before them."""

NO_TEXT = 0.05
"""Share of the stretches whose prompt says nothing."""


@dataclass(frozen=True)
class Curriculum:
    """How often each kind of stretch is drawn, relative to the others.

    `first`: only the first block. `start`: the first `length` blocks, all noisy. `rolled`: the sink, and blocks
    from much later, of which those are noisy whose window is there. `switched`: the world changes at a block,
    before which there was a KV recache under the new prompt. All streams begin with their clips, whose `variety`
    is the world's: what a model of little training is to learn had better not be different each time.
    """

    first: float
    start: float
    rolled: float
    switched: float
    length: int = 4
    variety: float = 1.0

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ConfigError(
                f"shares {self.shares} of the kinds of stretches; some must be positive, none negative"
            )
        if self.length < 2:
            raise ConfigError(f"length is {self.length} blocks; a stretch needs at least 2")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of the fields."""
        return self.first, self.start, self.rolled, self.switched

    def draw(self, generator: np.random.Generator, config: StreamConfig) -> Stretch:
        """A stretch of some kind."""
        kind = generator.choice(4, p=np.array(self.shares) / sum(self.shares))
        blocks, everything = WindowBlocks.of(config), tuple(range(self.length))
        if kind == 0:
            return Stretch((0,), (0,))
        if kind == 1:
            return Stretch(everything, everything)
        if kind == 2:
            numbers = (0, *range(blocks.window, blocks.window + self.length - 1))
            present = blocks.window - blocks.sink
            return Stretch(numbers, numbers[max(1, len(numbers) - self.length + present) :])
        switch = int(generator.integers(1, min(self.length, blocks.window)))
        return Stretch(everything, everything[switch:], recached=switch)


class Sample(NamedTuple):
    """A batch: latents [B, frames, channels, h, w] of a stretch's blocks, prompts' rows [B, text_len, dim]."""

    latents: Tensor
    rows: Tensor
    stretch: Stretch


@dataclass(frozen=True)
class Teachers:
    """The networks that earlier stages have made."""

    codec: TAEHV
    text_encoder: UMT5Encoder
    tokenizer: Tokenizer
    text_len: int


class Stretches(IterableDataset[Sample]):
    """Endless batches for the transformer, made on `device`."""

    def __init__(
        self, teachers: Teachers, stream: StreamConfig, curriculum: Curriculum, batch: int, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._teachers, self._stream, self._curriculum = teachers, stream, curriculum
        self._batch, self._seed, self._device = batch, seed, device

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        seeds = [self._seed] if worker is None else [self._seed, worker.id]
        generator = np.random.default_rng(seeds)
        if worker is not None:
            torch.set_num_threads(1)
        world = Renderer(self._stream.height, self._stream.width, self._device, self._curriculum.variety)
        while True:
            yield self._sample(world, generator)

    def loader(self) -> DataLoader[Sample]:
        """Made beside the training on a CPU; on a GPU in it, where it costs little."""
        workers = 1 if self._device.type == "cpu" else 0
        return DataLoader(self, batch_size=None, num_workers=workers)

    def _sample(self, world: Renderer, generator: np.random.Generator) -> Sample:
        stretch = self._curriculum.draw(generator, self._stream)
        switch = pixel_frames(stretch.recached * self._stream.block_frames) if stretch.recached else None
        clips, texts = zip(*(scripted(generator, switch) for _ in range(self._batch)), strict=True)
        rows = embed(texts, self._teachers.tokenizer, self._teachers.text_encoder, self._teachers.text_len)
        silent = torch.from_numpy(generator.random(self._batch) < NO_TEXT).to(rows.device)
        rows = rows.masked_fill(silent[:, None, None], 0)
        return Sample(self._latents(world, clips, stretch, generator), rows, stretch)

    def _latents(
        self, world: Renderer, clips: Sequence[Clip], stretch: Stretch, generator: np.random.Generator
    ) -> Tensor:
        size = self._stream.block_frames
        unbroken = sum(number == index for index, number in enumerate(stretch.numbers))
        first = self._encoded(world.render(clips, [0] * len(clips), pixel_frames(unbroken * size)))
        later = len(stretch.numbers) - unbroken
        if later == 0:
            return first
        jumped = generator.integers(LATEST_FRAME, size=len(clips)).tolist()
        pictures = world.render(clips, jumped, pixel_frames(WARM_UP + later * size))
        return torch.cat([first, self._encoded(pictures)[:, WARM_UP:]], dim=1)

    @torch.no_grad()
    def _encoded(self, pictures: Tensor) -> Tensor:
        codec = self._teachers.codec
        return codec.encode(pictures, codec.start_encoding()).latents


def scripted(generator: np.random.Generator, switch: int | None) -> tuple[Clip, str]:
    """A clip, and the prompt that is in force at the end of it; it changes at frame `switch`."""
    scene, seed = Scene.random(generator), int(generator.integers(1 << 31))
    if switch is None:
        return Clip(scene, seed), caption(scene, generator)
    after = changed(scene, generator)
    return Clip(scene, seed, after, switch), change_caption(scene, after, generator)


def changed(scene: Scene, generator: np.random.Generator) -> Scene:
    """`scene` with some of its attributes, mostly one or two, drawn again."""
    names = [*ATTRIBUTES, "facing"]
    while True:
        other = Scene.random(generator)
        count = min(int(generator.geometric(0.45)), len(names))
        chosen = generator.choice(names, size=count, replace=False)
        after = replace(scene, **{name: getattr(other, name) for name in chosen})
        if after != scene and not after.held_out:
            return after

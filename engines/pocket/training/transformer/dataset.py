"""What the transformer learns from: stretches of encoded clips, each with the rows of its prompt.

Clips are rendered and encoded once and used several times, with a prompt in other words and other noise each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.config.geometry import pixel_frames
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.pocket.training.reservoir import Reservoir
from engines.pocket.training.text_encoder import embed
from engines.pocket.training.transformer.teacher_forcing import Stretch, WindowBlocks
from engines.pocket.world.captions import caption, change_caption
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Scene
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.vae.protocol import StreamingVAE

LATEST_FRAME = 20_000
"""Of a clip, after which no later part of a stream is taken from it: twenty minutes."""

WARM_UP = 2
"""Latent frames that an encoder has to see before it no longer matters that it saw nothing before them."""

NO_TEXT = 0.05
"""Share of the stretches whose prompt says nothing."""

MADE_TOGETHER = 8
"""Clips that are rendered and encoded at once."""


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


@dataclass(frozen=True)
class Reuse:
    """How many clips of each kind of stretch are kept, and how often each is used."""

    kept: int = 256
    repeats: float = 5.0


class Sample(NamedTuple):
    """A batch: latents [B, frames, channels, h, w] of a stretch's blocks, prompts' rows [B, text_len, dim]."""

    latents: Tensor
    rows: Tensor
    stretch: Stretch


class EncodedClip(NamedTuple):
    """Latents [frames, channels, h, w] in fp16, and what they show."""

    latents: Tensor
    clip: Clip


@dataclass(frozen=True)
class Teachers:
    """The networks that earlier stages have made."""

    codec: StreamingVAE
    text_encoder: UMT5Encoder
    tokenizer: Tokenizer
    text_len: int

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Streams [B, frames, 3, H, W] from their beginning: [B, latent frames, channels, h, w], sums in bf16."""
        with torch.autocast(pictures.device.type, torch.bfloat16):
            return self.codec.encode(pictures, self.codec.start_encoding()).latents

    def read(self, texts: Sequence[str], generator: np.random.Generator) -> Tensor:
        """Rows of prompts, [B, text_len, dim]; a few of them say nothing instead."""
        rows = embed(texts, self.tokenizer, self.text_encoder, self.text_len)
        silent = torch.from_numpy(generator.random(len(texts)) < NO_TEXT).to(rows.device)
        return rows.masked_fill(silent[:, None, None], 0)


class Stretches:
    """Endless batches for the transformer, made on `device`: as many stretches as have `blocks` in a pass."""

    def __init__(
        self, teachers: Teachers, stream: StreamConfig, curriculum: Curriculum, blocks: int, seed: Sequence[int],
        device: torch.device, reuse: Reuse,
    ) -> None:  # fmt: skip
        self._teachers, self._stream, self._curriculum = teachers, stream, curriculum
        self._blocks, self._device, self._reuse = blocks, device, reuse
        self._generator = np.random.default_rng(seed)
        self._world = Renderer(stream.height, stream.width, device, curriculum.variety)
        self._clips: dict[Stretch, Reservoir[EncodedClip]] = {}

    def __iter__(self) -> Iterator[Sample]:
        while True:
            yield self._sample()

    def _sample(self) -> Sample:
        stretch = self._curriculum.draw(self._generator, self._stream)
        if stretch not in self._clips:
            make = partial(self._make, stretch)
            self._clips[stretch] = Reservoir(make, self._reuse.kept, self._reuse.repeats)
        drawn = self._clips[stretch].draw(max(1, self._blocks // stretch.size), self._generator)
        latents = torch.stack([encoded.latents for encoded in drawn]).float()
        texts = [worded(encoded.clip, self._generator) for encoded in drawn]
        return Sample(latents, self._teachers.read(texts, self._generator), stretch)

    def _make(self, stretch: Stretch) -> list[EncodedClip]:
        switch = pixel_frames(stretch.recached * self._stream.block_frames) if stretch.recached else None
        clips = [random_clip(self._generator, switch) for _ in range(min(MADE_TOGETHER, self._reuse.kept))]
        latents = self._latents(clips, stretch).half()
        return [EncodedClip(*pair) for pair in zip(latents, clips, strict=True)]

    def _latents(self, clips: Sequence[Clip], stretch: Stretch) -> Tensor:
        size = self._stream.block_frames
        unbroken = sum(number == index for index, number in enumerate(stretch.numbers))
        first = self._teachers.encode(self._world.render(clips, [0] * len(clips), pixel_frames(unbroken * size)))
        later = len(stretch.numbers) - unbroken
        if later == 0:
            return first
        jumped = self._generator.integers(LATEST_FRAME, size=len(clips)).tolist()
        pictures = self._world.render(clips, jumped, pixel_frames(WARM_UP + later * size))
        return torch.cat([first, self._teachers.encode(pictures)[:, WARM_UP:]], dim=1)


def random_clip(generator: np.random.Generator, switch: int | None) -> Clip:
    """A clip of a scene that training may see; it changes at frame `switch`."""
    scene, seed = Scene.random(generator), int(generator.integers(1 << 31))
    return Clip(scene, seed) if switch is None else Clip(scene, seed, changed(scene, generator), switch)


def worded(clip: Clip, generator: np.random.Generator) -> str:
    """The prompt that is in force at the end of a clip."""
    if clip.after is None:
        return caption(clip.scene, generator)
    return change_caption(clip.scene, clip.after, generator)


def changed(scene: Scene, generator: np.random.Generator) -> Scene:
    """`scene` with some of its attributes, mostly one or two, drawn again."""
    return drawn_again(scene, [*ATTRIBUTES, "facing"], 0.45, generator)


def drawn_again(scene: Scene, names: Sequence[str], stop: float, generator: np.random.Generator) -> Scene:
    """Another scene, with one or more of the attributes `names` drawn again; never one that is held out.

    After each of them there is a chance of `stop` that it was the last.
    """
    while True:
        other = Scene.random(generator)
        count = min(int(generator.geometric(stop)), len(names))
        chosen = generator.choice(names, size=count, replace=False)
        after = replace(scene, **{name: getattr(other, name) for name in chosen})
        if after != scene and not after.held_out:
            return after

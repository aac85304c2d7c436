"""Where clips to be judged come from: from a model's generator, or, to know what is possible, from the renderer.

Pictures are uint8 [B, frames, height, width, 3], as viewers get them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.judging.judge import PICTURES, STRIDE
from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Scene
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True)
class Cue:
    """What a stream is to show: `scene`, told in the words of `text`. `seed` decides what they leave open."""

    scene: Scene
    text: str
    seed: int


class Take(Protocol):
    """Streams that run side by side, one for each cue that they were started with."""

    @property
    def next_frame(self) -> int:
        """The frame at which the next block begins."""

    def switch(self, cues: Sequence[Cue], *, recache: bool) -> None:
        """Show other cues from the next block on; without `recache` the window keeps the old prompt's traces."""

    def next_block(self) -> Tensor:
        """The pictures of the next block."""

    def fork(self) -> Take:
        """Streams in the same state, to go on by themselves."""

    def close(self) -> None:
        """Give the memory back."""


class Source(Protocol):
    """Makes clips of what it is told to show."""

    @property
    def name(self) -> str:
        """Of the model."""

    def start(self, cues: Sequence[Cue]) -> Take:
        """New streams, one per cue."""


def as_floats(pictures: Tensor) -> Tensor:
    """uint8 [B, frames, height, width, 3] to [B, frames, 3, height, width] in 0..1."""
    return pictures.permute(0, 1, 4, 2, 3).float() / 255


def as_bytes(pictures: Tensor) -> Tensor:
    """The way back."""
    return pictures.mul(255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)


def rendered_pictures(world: Renderer, clips: Sequence[Clip], first_frames: Sequence[int]) -> Tensor:
    """What the judge looks at in the windows from `first_frames` on: [B, PICTURES, 3, height, width] in 0..1.

    The frames between are not rendered.
    """
    frames = [first + STRIDE * number for first in first_frames for number in range(PICTURES)]
    pictures = world.render([clip for clip in clips for _ in range(PICTURES)], frames, 1)
    return pictures.squeeze(1).unflatten(0, (len(clips), PICTURES))


class ModelSource:
    """Streams of `model` under its own stream settings; `together` of them go through the network at once."""

    def __init__(
        self, model: Model, prompts: PromptEncoder, name: str, *, streams: int, together: int = 1
    ) -> None:
        """`streams` is how many will be open at a time, forks included."""
        self.name = name
        self._config = model.config.stream
        self._prompts = prompts
        self._generator = build_generator(model, EngineConfig(self._config, sessions=streams, batch=together))

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of the denoiser and of the codec."""
        return self._generator.identity

    def start(self, cues: Sequence[Cue]) -> ModelTake:
        """New streams, one per cue, which also gives the seed."""
        streams = [self._generator.open(replace(self._config, seed=cue.seed)) for cue in cues]
        take = ModelTake(self._generator, self._prompts, streams)
        take.switch(cues, recache=True)
        return take


class ModelTake:
    """Streams on a generator."""

    def __init__(self, generator: Generator, prompts: PromptEncoder, streams: Sequence[Stream]) -> None:
        self._generator = generator
        self._prompts = prompts
        self._streams = streams

    @property
    def next_frame(self) -> int:
        """The frame at which the next block of every stream begins."""
        return self._streams[0].next_frame

    def switch(self, cues: Sequence[Cue], *, recache: bool) -> None:
        """Set the prompts. Without recache only the cross-attention of later blocks learns of them."""
        for stream, cue in zip(self._streams, cues, strict=True):
            # The last block's clean pass belongs to its own prompt; a recache would have made up for it.
            self._generator.write_context([stream])
            self._generator.set_prompt(stream, self._prompts.encode(cue.text))
            stream.recache_due = stream.recache_due and recache

    def next_block(self) -> Tensor:
        """Generate and decode. The pictures go back to the model's device, on which they are judged."""
        blocks = self._generator.generate(self._streams)
        pairs = zip(self._streams, blocks, strict=True)
        pictures = torch.stack([self._generator.decode(stream, block) for stream, block in pairs])
        return pictures.to(self._generator.cache.device)

    def fork(self) -> ModelTake:
        """Fork every stream."""
        forks = [self._generator.fork(stream) for stream in self._streams]
        return ModelTake(self._generator, self._prompts, forks)

    def close(self) -> None:
        """Close every stream."""
        for stream in self._streams:
            self._generator.close(stream)


class RenderedSource:
    """The world itself, in blocks as `stream` would deliver them: the best that a model can become."""

    name = "rendered"

    def __init__(self, world: Renderer, stream: StreamConfig) -> None:
        self._world = world
        self._block_frames = TEMPORAL_FACTOR * stream.block_frames

    def start(self, cues: Sequence[Cue]) -> RenderedTake:
        """New clips, one per cue."""
        clips = [Clip(cue.scene, cue.seed) for cue in cues]
        return RenderedTake(self._world, clips, self._block_frames)


class RenderedTake:
    """Clips on the renderer. It knows of no recache, and of one switch per clip."""

    def __init__(self, world: Renderer, clips: Sequence[Clip], block_frames: int, next_frame: int = 0) -> None:
        self._world = world
        self._clips = clips
        self._block_frames = block_frames
        self.next_frame = next_frame

    def switch(self, cues: Sequence[Cue], *, recache: bool) -> None:
        """Turn every clip into its next scene. Raises ValueError the second time."""
        if any(clip.after is not None for clip in self._clips):
            raise ValueError("a rendered clip has been switched already; it can be only once")
        pairs = zip(self._clips, cues, strict=True)
        self._clips = [replace(clip, after=cue.scene, switch_frame=self.next_frame) for clip, cue in pairs]

    def next_block(self) -> Tensor:
        """Render the frames of a block; the first latent frame of a stream is one of them."""
        frames = self._block_frames if self.next_frame else self._block_frames - TEMPORAL_FACTOR + 1
        pictures = self._world.render(self._clips, [self.next_frame] * len(self._clips), frames)
        self.next_frame += frames
        return as_bytes(pictures)

    def fork(self) -> RenderedTake:
        """The same clips at the same frame."""
        return RenderedTake(self._world, self._clips, self._block_frames, self.next_frame)

    def close(self) -> None:
        """Nothing is held."""

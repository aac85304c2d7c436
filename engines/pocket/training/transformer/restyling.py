"""Training the transformer to restyle: clips beside the same clips in another light, weather or color.

A pass sees latents of one clip mixed with noise, under the caption of the other, and is to lead to the other's
latents. Frames attend those before them in the keys that passes at the same level of noise have left, as a lane of
a stream batch does. Later steps begin from what earlier ones made: some samples from a mixture of the two clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.config.geometry import pixel_frames
from engines.config.model import ModelConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError
from engines.pocket.training.reservoir import Reservoir
from engines.pocket.training.trainer import Losses
from engines.pocket.training.transformer.dataset import MADE_TOGETHER, Reuse, Teachers, drawn_again, random_clip
from engines.pocket.training.transformer.flow_loss import FlowLoss
from engines.pocket.training.transformer.teacher_forcing import KeyValue, TextMemory, attention
from engines.pocket.world.captions import caption
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Scene
from engines.sampling.flow_schedule import TRAINING_STEPS
from engines.video.builder import require_video
from engines.wan.layers import Attention
from engines.wan.transformer import CausalTransformer
from kernels.attention.rope import apply_rope, frame_freqs, join_freqs, spatial_freqs

RESTYLED = ("light", "weather", "color")
"""Attributes that a prompt changes; all else of the clip is to stay."""


@dataclass(frozen=True)
class Restyling:
    """How much of a stage is restyling.

    A `share` of its steps takes `batch` pairs of clips of so many latent `frames`, at levels of noise within
    `sigmas`. `begun` of the samples are mixtures of the two clips.
    """

    share: float = 1 / 3
    batch: int = 8
    frames: int = 9
    sigmas: tuple[float, float] = (0.45, 0.85)
    begun: float = 0.5
    reuse: Reuse = field(default_factory=Reuse)

    def __post_init__(self) -> None:
        low, high = self.sigmas
        if not 0 < self.share <= 1 or not 0 <= self.begun <= 1:
            raise ConfigError(f"share {self.share} and begun {self.begun} must lie within 0..1, share above 0")
        if not 0 < low <= high <= 1:
            raise ConfigError(f"sigmas {self.sigmas} must ascend within 0..1")


class Pairs(NamedTuple):
    """Latents [B, frames, channels, h, w] of clips as they are and as their prompts, rows [B, L, dim], ask."""

    given: Tensor
    asked: Tensor
    rows: Tensor


class EncodedPair(NamedTuple):
    """Latents [frames, channels, h, w] of a clip and of its restyled one in fp16, and what that shows."""

    given: Tensor
    asked: Tensor
    after: Scene


class PairSource:
    """Endless batches of pairs, made on `device` from a world of some `variety`."""

    def __init__(
        self, teachers: Teachers, stream: VideoStreamConfig, settings: Restyling, variety: float,
        seed: Sequence[int], device: torch.device,
    ) -> None:  # fmt: skip
        self._teachers, self._settings = teachers, settings
        self._generator = np.random.default_rng(seed)
        self._world = Renderer(stream.height, stream.width, device, variety)
        self._pairs = Reservoir(self._make, settings.reuse.kept, settings.reuse.repeats)

    def __iter__(self) -> Iterator[Pairs]:
        while True:
            drawn = self._pairs.draw(self._settings.batch, self._generator)
            texts = [caption(pair.after, self._generator) for pair in drawn]
            given = torch.stack([pair.given for pair in drawn]).float()
            asked = torch.stack([pair.asked for pair in drawn]).float()
            yield Pairs(given, asked, self._teachers.read(texts, self._generator))

    def _make(self) -> list[EncodedPair]:
        frames, count = pixel_frames(self._settings.frames), min(MADE_TOGETHER // 2, self._settings.reuse.kept)
        before = [random_clip(self._generator, None) for _ in range(count)]
        after = [Clip(restyled(clip.scene, self._generator), clip.seed) for clip in before]
        latents = self._teachers.encode(self._world.render([*before, *after], [0] * 2 * count, frames)).half()
        return [EncodedPair(latents[index], latents[count + index], after[index].scene) for index in range(count)]


def restyled(scene: Scene, generator: np.random.Generator) -> Scene:
    """`scene` with one or more of `RESTYLED` drawn again; never one that is held out."""
    return drawn_again(scene, RESTYLED, 0.6, generator)


class LaneWindow:
    """What each frame of a lane attends: the sink, the latest frames, and itself; the opening is one block.

    Positions are absolute, and those behind the sink `ahead` of their numbers, as they are later in a stream. That
    a frame of the sink can be replaced is left out.
    """

    def __init__(self, stream: VideoStreamConfig, head_dim: int, device: torch.device, ahead: int = 0) -> None:
        self._stream, self._head_dim, self._ahead = stream, head_dim, ahead
        self._spatial = spatial_freqs(stream.rows, stream.columns, head_dim).to(device)

    def blocks(self, frames: int) -> list[range]:
        """The blocks of the first `frames`."""
        lengths = self._stream.blocks
        starts = [lengths.latent_frames(block) for block in range(lengths.blocks_of(frames) + 1)]
        return [range(*block) for block in pairwise(starts)]

    def past(self, block: range) -> list[int]:
        """The frames before `block` that it sees."""
        sink = min(self._stream.sink_frames, block.start)
        ring = self._stream.window_frames - self._stream.sink_frames
        return [*range(sink), *range(max(sink, block.stop - ring), block.start)]

    def turned(self, x: Tensor, block: range) -> Tensor:
        """Queries or keys [B, tokens, heads, channels] of a block at its positions."""
        sink = self._stream.sink_frames
        positions = [frame if frame < sink else frame + self._ahead for frame in block]
        frame = frame_freqs(positions, self._head_dim).to(self._spatial.device)
        return apply_rope(x, join_freqs(frame, self._spatial))


class LaneMemory(TextMemory):
    """The `AttentionContext` of passes over one block of a lane after the other, with gradients through all."""

    def __init__(self, transformer: CausalTransformer, rows: Tensor, window: LaneWindow) -> None:
        super().__init__(transformer, rows)
        self.window = window
        self._frames: list[dict[int, KeyValue]] = [{} for _ in transformer.blocks]
        self.block = range(0)
        """Frames of the block whose pass runs."""

    def self_attention(self, layer: int, attention_of: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The block over its window."""
        self.write_kv(layer, attention_of, k, v)
        seen = [self._frames[layer][frame] for frame in (*self.window.past(self.block), *self.block)]
        keys, values = (torch.cat(part, 1) for part in zip(*seen, strict=True))
        return attention(self.window.turned(attention_of.queries(q), self.block), keys, values)

    def write_kv(self, layer: int, attention: Attention, k: Tensor, v: Tensor) -> None:
        """By frames, the keys turned to their positions."""
        block, keys = self.block, self.window.turned(attention.keys(k), self.block)
        by_frame = (x.chunk(len(block), 1) for x in (keys, attention.heads_of(v)))
        self._frames[layer].update(zip(block, zip(*by_frame, strict=True), strict=True))


def restyling_losses(
    transformer: CausalTransformer, pairs: Pairs, window: LaneWindow, settings: Restyling, loss: FlowLoss
) -> Losses:
    """Weighed squared error of the flow from each clip, mixed with noise, to what was asked for."""
    given, asked = pairs.given, pairs.asked
    sigma = torch.empty(len(given), device=given.device).uniform_(*settings.sigmas)
    done = torch.rand_like(sigma) * (torch.rand_like(sigma) < settings.begun)
    far, much = (x[:, None, None, None, None] for x in (done, sigma))
    noisy = torch.lerp(torch.lerp(given, asked, far), torch.randn_like(given), much)
    memory, flows = LaneMemory(transformer, pairs.rows, window), list[Tensor]()
    for block in window.blocks(given.shape[1]):
        memory.block = block
        timesteps = (sigma * TRAINING_STEPS)[:, None].expand(-1, len(block))
        flows.append(transformer(noisy[:, block.start : block.stop], timesteps, memory).float())
    errors = loss(torch.cat(flows, 1), (noisy - asked) / much, asked)
    return {"restyling": errors.mean()}


class RestylingTeacher:
    """Puts restyling beside what else a stage trains."""

    def __init__(
        self, teachers: Teachers, model: ModelConfig, settings: Restyling, variety: float, seed: Sequence[int],
        device: torch.device, loss: FlowLoss,
    ) -> None:  # fmt: skip
        self._stream, self._head_dim = require_video(model), model.transformer.head_dim
        self._settings, self._device, self._loss = settings, device, loss
        self.pairs = iter(PairSource(teachers, self._stream, settings, variety, (*seed, 1), device))

    def beside(self, others: Callable[[int], Losses], transformer: CausalTransformer) -> Callable[[int], Losses]:
        """The losses of a step: in a share of the steps, the same ones in all processes, those of restyling."""

        def losses(step: int) -> Losses:
            share = self._settings.share
            return self._losses(transformer) if int((step + 1) * share) > int(step * share) else others(step)

        return losses

    def _losses(self, transformer: CausalTransformer) -> Losses:
        ahead = int(torch.randint(self._stream.refresh_at - self._settings.frames, ()))
        window = LaneWindow(self._stream, self._head_dim, self._device, ahead)
        drawn = next(self.pairs)
        with torch.autocast(self._device.type, torch.bfloat16):
            found = restyling_losses(transformer, drawn, window, self._settings, self._loss)
        return {"total": found["restyling"], **found}

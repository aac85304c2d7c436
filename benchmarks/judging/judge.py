"""The judge: a small network that reads from a clip what it shows. It has only ever seen rendered clips.

It looks at every third frame, at half the size of the pocket model's pictures. Subject, color, setting, light and
weather are read from each picture by itself, with its difference to the one before, and averaged; motion is read
from where things are in all the pictures of a clip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.judging.frame_statistics import Bounds, Collapse, Look, looks
from engines.pocket.world.scene import ATTRIBUTES, Scene
from serving.media.whole_file import whole_file, write_whole

WEIGHTS = Path(__file__).parents[1] / "assets" / "judge.safetensors"
FACTS = WEIGHTS.with_suffix(".json")

STRIDE = 3
"""Frames from one picture that the judge looks at to the next."""

PICTURES = 12
CLIP_FRAMES = PICTURES * STRIDE
"""Of a clip, as the judge reads it: two and a quarter seconds."""

MOTION = "motion"
APPEARANCE = tuple(name for name in ATTRIBUTES if name != MOTION)
"""Attributes that can be seen in a single picture."""

HEIGHT, WIDTH = 48, 80
"""Of the pictures as the judge sees them."""

PLACE_GRID = (HEIGHT // 8, WIDTH // 8)
"""Rows and columns in which the motion part still knows where something is."""


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the judge: channels after each convolution, of the map of places, and over time.

    Raises ValueError unless all are positive.
    """

    widths: tuple[int, int, int, int] = (24, 48, 64, 96)
    place_channels: int = 16
    time_width: int = 128

    def __post_init__(self) -> None:
        if min(*self.widths, self.place_channels, self.time_width) < 1:
            raise ValueError(f"{self}; all sizes must be at least 1")


class Logits(NamedTuple):
    """For each attribute [B, values] of whole clips, and for those of appearance [B, pictures, values]."""

    clips: dict[str, Tensor]
    pictures: dict[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one clip: the probability of each value of each attribute, in the enum's order."""

    probabilities: Mapping[str, tuple[float, ...]]

    @property
    def values(self) -> dict[str, str]:
        """The likeliest value of each attribute."""
        return {name: most_likely(name, row) for name, row in self.probabilities.items()}


def most_likely(attribute: str, probabilities: tuple[float, ...]) -> str:
    """The value of `attribute` that has the highest of `probabilities`."""
    return str(list(ATTRIBUTES[attribute])[max(range(len(probabilities)), key=probabilities.__getitem__)])


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3, normalized, rectified."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Judge(nn.Module):
    """Reads clips. Below 0.5 M parameters at the default sizes."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third, last = config.widths
        self.picture = nn.Sequential(
            convolution(6, first, 2), convolution(first, second, 2), convolution(second, third, 2),
            convolution(third, last, 1),
        )  # fmt: skip
        self.appearance = nn.ModuleDict({name: nn.Linear(2 * last, len(ATTRIBUTES[name])) for name in APPEARANCE})
        places = config.place_channels * PLACE_GRID[0] * PLACE_GRID[1]
        self.place = nn.Sequential(
            nn.Conv2d(last, config.place_channels, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(places, config.time_width),
        )
        self.time = nn.Sequential(
            nn.Conv1d(config.time_width, config.time_width, 3, padding=1), nn.ReLU(),
            nn.Conv1d(config.time_width, config.time_width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.motion = nn.Linear(2 * config.time_width, len(ATTRIBUTES[MOTION]))

    @override
    def forward(self, pictures: Tensor) -> Logits:
        """Read small pictures [B, T >= 2, 3, HEIGHT, WIDTH] in 0..1, STRIDE frames apart."""
        batch, count = pictures.shape[:2]
        steps = pictures.diff(dim=1)
        steps = torch.cat([steps[:, :1], steps], dim=1)
        seen = self.picture(torch.cat([pictures - 0.5, steps], dim=2).flatten(0, 1))
        pooled = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1).unflatten(0, (batch, count))
        single = {name: head(pooled) for name, head in self.appearance.items()}
        over_time = self.time(self.place(seen).unflatten(0, (batch, count)).transpose(1, 2))
        motion = self.motion(torch.cat([over_time.mean(dim=2), over_time.amax(dim=2)], dim=1))
        whole = {name: logits.mean(dim=1) for name, logits in single.items()} | {MOTION: motion}
        return Logits({name: whole[name] for name in ATTRIBUTES}, single)

    def read(self, clips: Tensor) -> list[Reading]:
        """Read clips [B, CLIP_FRAMES, 3, height, width] in 0..1; ValueError for another number of frames."""
        if clips.ndim != 5 or clips.shape[1] != CLIP_FRAMES:
            raise ValueError(f"clips are {list(clips.shape)}; the judge reads {CLIP_FRAMES} frames")
        return self.read_sampled(sampled(clips))

    @torch.inference_mode()
    def read_sampled(self, pictures: Tensor) -> list[Reading]:
        """Read clips of which only every `STRIDE`-th picture is here: [B, PICTURES, 3, height, width] in 0..1."""
        logits = self(small(pictures)).clips
        rows = {name: values.softmax(dim=-1).tolist() for name, values in logits.items()}
        return [Reading({name: tuple(rows[name][i]) for name in rows}) for i in range(pictures.shape[0])]

    @torch.inference_mode()
    def read_pictures(self, pictures: Tensor) -> list[dict[str, list[str]]]:
        """What each picture shows, for every attribute of appearance and for each clip by itself.

        Takes [B, two or more, 3, height, width] in 0..1, `STRIDE` frames apart.
        """
        single = self(small(pictures)).pictures
        best = {name: logits.argmax(dim=-1).tolist() for name, logits in single.items()}
        values = {name: [str(value) for value in ATTRIBUTES[name]] for name in best}
        return [
            {name: [values[name][i] for i in rows[clip]] for name, rows in best.items()}
            for clip in range(pictures.shape[0])
        ]


def first_read(blocks: int, frames: int) -> int:
    """The first of the last frames of a stream that are read. Raises ValueError if `blocks` have too few."""
    if frames < CLIP_FRAMES:
        raise ValueError(f"{blocks} blocks are {frames} frames; the judge reads {CLIP_FRAMES}")
    return frames - CLIP_FRAMES


def sampled(frames: Tensor) -> Tensor:
    """The pictures of [B, frames, ...] that the judge looks at."""
    return frames[:, ::STRIDE]


def small(pictures: Tensor) -> Tensor:
    """[B, T, 3, height, width] brought to the judge's size by averaging."""
    reduced = F.interpolate(pictures.flatten(0, 1), (HEIGHT, WIDTH), mode="area")
    return reduced.unflatten(0, pictures.shape[:2])


@dataclass(frozen=True)
class Verdict:
    """On one clip: what it shows, how it looks, and what has become of it if it is no picture of the world."""

    reading: Reading
    look: Look
    collapse: Collapse | None

    def shows(self, scene: Scene, attribute: str) -> bool:
        """Whether `attribute` is as in `scene`. A clip that has collapsed shows nothing."""
        return self.collapse is None and self.reading.values[attribute] == getattr(scene, attribute)

    def wrong(self, scene: Scene) -> dict[str, str]:
        """The values read that are not those of `scene`."""
        return {name: value for name, value in self.reading.values.items() if not self.shows(scene, name)}


@dataclass(frozen=True)
class TrainedJudge:
    """A judge with its weights, the bounds outside which it reads nothing, and the facts of its accuracy."""

    network: Judge
    bounds: Bounds
    facts: Mapping[str, Any]

    @classmethod
    def load(cls, device: torch.device | str = "cpu", weights: Path = WEIGHTS) -> Self:
        """The one in the repository, or the one in `weights` with its facts beside it."""
        facts = json.loads(weights.with_suffix(".json").read_text())
        config = JudgeConfig(**facts["config"] | {"widths": tuple(facts["config"]["widths"])})
        network = Judge(config)
        network.load_state_dict(load_file(weights))
        return cls(network.to(device).eval().requires_grad_(False), Bounds(**facts["bounds"]), facts)

    def judge(self, clips: Tensor) -> list[Verdict]:
        """A verdict on each of clips [B, CLIP_FRAMES, 3, height, width] in 0..1."""
        seen = zip(self.network.read(clips), looks(sampled(clips)), strict=True)
        return [Verdict(reading, look, self.bounds.collapse(look)) for reading, look in seen]

    def save(self, weights: Path = WEIGHTS) -> None:
        """Write weights and facts."""
        with whole_file(weights) as place:
            save_file({name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}, place)
        document = {"config": asdict(self.network.config), "bounds": asdict(self.bounds), **self.facts}
        write_whole(weights.with_suffix(".json"), json.dumps(document, indent=1) + "\n")

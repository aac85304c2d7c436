"""Stage one: the autoencoder over patches, trained on the world's pictures.

It starts as a linear code (`linear_code.py`), which draws recognisable pictures untrained, and only improves.
Errors of pictures, of their edges and of their changes in time are taken as they are and squared; a pull of the
latents towards mean zero and variance one is what the denoiser's noise takes for granted. A little noise on the
latents makes the decoder forgiving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from engines.config.geometry import SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.config.networks import PatchVAEConfig
from engines.pocket.training.linear_code import fit, groups_of, start_from
from engines.pocket.training.optimizers import Muon, adamw
from engines.pocket.training.reservoir import Reservoir
from engines.pocket.training.team import Team
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Color, Scene
from engines.vae.patch_vae import PatchVAE

SOMETIMES = 0.3
"""Share of the clips in which the scene changes."""

LATEST_FRAME = 10_000

RENDERED_TOGETHER = 4
"""Clips at once."""

VISIBLE = 0.06
"""Difference of a color that another color of the subject makes at the least where the subject is."""


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts. `boundary` is the change from one latent frame to the next alone."""

    picture: float = 0.5
    picture_squared: float = 8.0
    edges: float = 0.3
    edges_squared: float = 2.0
    change: float = 0.3
    change_squared: float = 4.0
    boundary: float = 0.5
    boundary_squared: float = 4.0
    flicker: float = 0.5
    chroma: float = 0.3
    moments: float = 0.02


@dataclass(frozen=True)
class AutoencoderTraining:
    """Settings of a stage. A sample is a crop of a clip of 1 + 4k frames, on the grid of the patches.

    The subject's pixels count `subject` times as much again. `start_clips` are what the linear code is fitted to;
    of the clips `kept` at a time, each is used `repeats` times.
    """

    budget: Budget
    batch: int
    crop: tuple[int, int]
    frames: int = 13
    latent_noise: float = 0.06
    subject: float = 0.0
    weights: LossWeights = field(default_factory=LossWeights)
    start_clips: int = 240
    kept: int = 256
    repeats: float = 8.0
    seed: int = 1


class Pictures(NamedTuple):
    """Pictures [B, N, 3, h, w] fp32 in 0..1, and how much each pixel counts: [B, N, 1, h, w]."""

    clips: Tensor
    weights: Tensor


class RenderedClip(NamedTuple):
    """Pictures [N, 3, H, W] uint8, and where the subject is: [N, H, W] bool."""

    pictures: Tensor
    subject: Tensor


class Crops:
    """Endless batches of cropped clips, on `device`."""

    def __init__(self, settings: AutoencoderTraining, seed: Sequence[int], device: torch.device) -> None:
        self._settings = settings
        self._generator = np.random.default_rng(seed)
        self._world = Renderer(device=device)
        self._clips = Reservoir(self._rendered, settings.kept, settings.repeats)

    def __iter__(self) -> Iterator[Pictures]:
        while True:
            clips = self._clips.draw(self._settings.batch, self._generator)
            pictures, subjects = zip(*(self._crop(clip) for clip in clips), strict=True)
            yield Pictures(
                torch.stack(pictures).float() / 255,
                1 + self._settings.subject * torch.stack(subjects).float().unsqueeze(2),
            )

    def _rendered(self) -> list[RenderedClip]:
        clips = [random_clip(self._generator) for _ in range(RENDERED_TOGETHER)]
        first = self._generator.integers(LATEST_FRAME, size=len(clips)).tolist()
        pictures = self._world.render(clips, first, self._settings.frames)
        if self._settings.subject > 0:
            other = self._world.render([recolored(clip) for clip in clips], first, self._settings.frames)
            subjects = subject_mask(pictures, other)
        else:
            subjects = torch.zeros_like(pictures[:, :, 0], dtype=torch.bool)
        stored = pictures.mul(255).round().to(torch.uint8)
        return [RenderedClip(*pair) for pair in zip(stored, subjects, strict=True)]

    def _crop(self, clip: RenderedClip) -> tuple[Tensor, Tensor]:
        """Horizon, rain and snow have fixed phases on the grid of the patches, which a crop keeps."""
        (height, width), (rows, columns) = self._settings.crop, clip.pictures.shape[-2:]
        y = SPATIAL_FACTOR * int(self._generator.integers((rows - height) // SPATIAL_FACTOR + 1))
        x = SPATIAL_FACTOR * int(self._generator.integers((columns - width) // SPATIAL_FACTOR + 1))
        pictures, subject = (part[..., y : y + height, x : x + width] for part in clip)
        return pictures, subject


def random_clip(generator: np.random.Generator) -> Clip:
    """A clip of any scene that training may see; some change at a frame of the first 10,000."""
    scene, seed = Scene.random(generator), int(generator.integers(1 << 31))
    if generator.random() > SOMETIMES:
        return Clip(scene, seed)
    return Clip(scene, seed, Scene.random(generator), int(generator.integers(LATEST_FRAME)))


def recolored(clip: Clip) -> Clip:
    """The same clip with its subjects in another color."""

    def other(scene: Scene) -> Scene:
        colors = list(Color)
        return replace(scene, color=colors[(colors.index(scene.color) + 3) % len(colors)])

    return replace(clip, scene=other(clip.scene), after=None if clip.after is None else other(clip.after))


def subject_mask(pictures: Tensor, other: Tensor) -> Tensor:
    """Where two colors of the subject differ, without specks, two pixels wider: [B, N, H, W] bool."""
    differs = ((pictures - other).abs().amax(2) > VISIBLE).float()
    solid = (F.avg_pool2d(differs, 3, 1, 1) > 0.5).float()
    return F.max_pool2d(solid, 5, 1, 2).bool()


def new_autoencoder(config: PatchVAEConfig, settings: AutoencoderTraining, device: torch.device) -> PatchVAE:
    """An autoencoder that is a linear code fitted to rendered clips."""
    torch.manual_seed(settings.seed)
    generator, world = np.random.default_rng([settings.seed, 0]), Renderer(device=device)

    def patches() -> Iterator[Tensor]:
        for _ in range(0, settings.start_clips, RENDERED_TOGETHER):
            clips = [random_clip(generator) for _ in range(RENDERED_TOGETHER)]
            first = generator.integers(LATEST_FRAME, size=len(clips)).tolist()
            yield groups_of(world.render(clips, first, settings.frames))

    network = PatchVAE(config)
    start_from(network, fit(patches(), config.latent_channels))
    return network.to(device)


def train_autoencoder(
    network: PatchVAE, stage: str, settings: AutoencoderTraining, workshop: Workshop
) -> PatchVAE:
    """Train or go on training from `network`'s weights; returns the averaged network."""
    team, device = workshop.team, workshop.device
    run = Run(stage, network, settings.budget, asdict(settings), workshop, optimizers(network, team))
    seed = (settings.seed, 1 + run.progress.step, team.rank)
    torch.manual_seed(hash(seed))
    batches, moments = iter(Crops(settings, seed, device)), Moments(network.config.latent_channels, device)

    def losses(_: int) -> Losses:
        return autoencoder_losses(network, next(batches), moments, settings)

    average = run.train(losses)
    assert isinstance(average, PatchVAE)
    return average


def optimizers(network: PatchVAE, team: Team) -> list[Optimizer]:
    """Muon for the inner convolutions; AdamW at half of its rate for the rest, at a tenth for the linear code."""
    named = dict(network.named_parameters())
    linear = {name for name in named if ".linear." in name}
    last = {f"{half}.network.{_last(coder)}.weight" for half, coder in
            (("encoder", network.encoder.network), ("decoder", network.decoder.network))}  # fmt: skip
    inner = {name for name, p in named.items() if p.ndim == 4} - linear - last
    rest = named.keys() - linear - inner
    return [
        Muon((named[name] for name in sorted(inner)), team),
        adamw([(name, named[name]) for name in sorted(rest)], share=0.5, decay=0.0, scaled=False),
        adamw([(name, named[name]) for name in sorted(linear)], share=0.1, decay=0.0, scaled=False),
    ]


def _last(layers: nn.Module) -> str:
    return [name for name, layer in layers.named_children() if isinstance(layer, nn.Conv2d)][-1]


def autoencoder_losses(
    network: PatchVAE, pictures: Pictures, moments: Moments, settings: AutoencoderTraining
) -> Losses:
    """Of clips that are encoded, disturbed and decoded."""
    true, weights = pictures
    with torch.autocast(true.device.type, torch.bfloat16):
        latents = network.encode(true, network.start_encoding()).latents.float()
        much = settings.latent_noise * torch.rand(len(latents), 1, 1, 1, 1, device=true.device)
        disturbed = latents + much * torch.randn_like(latents)
        seen = network.decode_raw(disturbed, network.start_decoding()).output.float()
    error = seen - true
    losses = _errors(error, weights) | {
        "flicker": (_flicker(seen) - _flicker(true)).abs().mean(),
        "moments": moments.divergence(latents),
    }
    total = torch.stack([getattr(settings.weights, name) * value for name, value in losses.items()]).sum()
    return {"total": total, **losses}


def _errors(error: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of pictures and colors, of edges, and of changes from picture to picture: [B, N, 3, h, w] each."""
    across, along = error.diff(dim=-1), error.diff(dim=-2)
    change = error.diff(dim=1)
    boundary = change[:, ::TEMPORAL_FACTOR]

    def weighed(values: Tensor) -> Tensor:
        return (values * weights[..., : values.shape[-2], : values.shape[-1]]).mean()

    return {
        "picture": weighed(error.abs()),
        "picture_squared": weighed(error.square()),
        "edges": weighed(across.abs()) + weighed(along.abs()),
        "edges_squared": weighed(across.square()) + weighed(along.square()),
        "change": change.abs().mean(),
        "change_squared": change.square().mean(),
        "boundary": boundary.abs().mean(),
        "boundary_squared": boundary.square().mean(),
        "chroma": (error - error.mean(2, keepdim=True)).abs().mean(),
    }


def _flicker(pictures: Tensor) -> Tensor:
    """How much each 8x8 place changes from picture to picture."""
    return F.avg_pool2d(pictures.diff(dim=1).abs().mean(2), 8, 4)


class Moments:
    """Running mean and square of each latent channel, over batches too small to be asked for them alone."""

    def __init__(self, channels: int, device: torch.device, decay: float = 0.98) -> None:
        self._mean, self._square = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self._decay = decay

    def divergence(self, latents: Tensor) -> Tensor:
        """How far the moments, with these latents [B, T, C, h, w] among them, are from those of N(0, 1).

        The gradient is as large as if the moments were these latents' own.
        """
        channels, new = latents.transpose(0, 2).flatten(1), 1 - self._decay
        mean = self._decay * self._mean + new * channels.mean(1)
        square = self._decay * self._square + new * channels.square().mean(1)
        self._mean, self._square = mean.detach(), square.detach()
        variance = square - mean.square()
        found = 0.5 * (mean.square() + variance - variance.clamp(min=1e-6).log() - 1).mean()
        return found.detach() + (found - found.detach()) / new

"""Stage one: the autoencoder, a TAEHV of our own, trained on the world's pictures.

Losses are plain: absolute error of the pictures, of their colour differences (a subject's colour is what a judge
asks for), of their edges and of their changes in time, and a pull of the latents towards mean zero and variance
one, which the denoiser's noise takes for granted. A little noise on the latents makes the decoder forgiving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from engines.config.geometry import SPATIAL_FACTOR
from engines.config.networks import TAEHVConfig
from engines.errors import ConfigError
from engines.pocket.training.trainer import Budget, Losses, Run, Workshop
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import Clip, Scene
from engines.vae.taehv import TAEHV, MemoryBlock, TimeGrow, TimePool

SOMETIMES = 0.3
"""Share of the clips in which the scene changes."""

LATENT_CONTRAST = 2.5
"""Latents per unit of colour at the start, so that their variance is about one."""


@dataclass(frozen=True)
class AutoencoderTraining:
    """Settings of the stage. A sample is a crop of a clip of 1 + 4k frames."""

    budget: Budget
    batch: int
    frames: int = 13
    crop: tuple[int, int] = (48, 80)
    latent_noise: float = 0.05
    seed: int = 1


class Crops(IterableDataset[Tensor]):
    """Endless batches of cropped clips [B, frames, 3, h, w], on `device`. Each worker has clips of its own."""

    def __init__(self, settings: AutoencoderTraining, device: torch.device) -> None:
        self._settings, self._device = settings, device

    def __iter__(self) -> Iterator[Tensor]:
        worker = torch.utils.data.get_worker_info()
        torch.set_num_threads(1) if worker else None
        generator = np.random.default_rng(
            [self._settings.seed, worker.id if worker else 0, worker.seed if worker else 0]
        )
        world = Renderer(device=self._device)
        while True:
            yield self._batch(world, generator)

    def _batch(self, world: Renderer, generator: np.random.Generator) -> Tensor:
        clips = [random_clip(generator) for _ in range(self._settings.batch)]
        first = generator.integers(0, 10_000, size=len(clips)).tolist()
        pictures = world.render(clips, first, self._settings.frames)
        height, width = self._settings.crop
        tops = generator.integers(0, pictures.shape[-2] - height + 1, size=len(clips))
        lefts = generator.integers(0, pictures.shape[-1] - width + 1, size=len(clips))
        crops = [p[..., y : y + height, x : x + width] for p, y, x in zip(pictures, tops, lefts, strict=True)]
        return torch.stack(crops)


def random_clip(generator: np.random.Generator) -> Clip:
    """A clip of any scene that training may see; some change at a frame of the first 10,000."""
    scene, seed = Scene.random(generator), int(generator.integers(1 << 31))
    if generator.random() > SOMETIMES:
        return Clip(scene, seed)
    return Clip(scene, seed, Scene.random(generator), int(generator.integers(10_000)))


def train_autoencoder(config: TAEHVConfig, settings: AutoencoderTraining, workshop: Workshop) -> TAEHV:
    """Train or go on training; returns the averaged network."""
    torch.manual_seed(settings.seed)
    network = TAEHV(config)
    prepare(network)
    network.to(workshop.device)
    run = Run("autoencoder", network, settings.budget, asdict(settings), workshop)
    batches = iter(crops_loader(settings, workshop.device))

    def losses(_: int) -> Losses:
        return autoencoder_losses(network, next(batches), settings.latent_noise)

    average = run.train(losses)
    assert isinstance(average, TAEHV)
    return average


@torch.no_grad()
def prepare(network: TAEHV) -> None:
    """Start as a mosaic; the rest is learned.

    Twelve channels carry the mean colours of the four quarters of each 8x8 patch through all layers, which is
    linear and needs no training; the other channels begin at random (He et al. 2015), residual branches at zero.
    Raises ConfigError unless the network folds whole patches of 8x8 into its channels.
    """
    if network.config.patch != SPATIAL_FACTOR:
        raise ConfigError(f"a patch of {network.config.patch}; the pocket model's autoencoder folds patches of 8")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer.bias is None else "relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    quarters = _quarters()
    same, half = torch.eye(len(quarters)), torch.full((len(quarters),), 0.5)
    for coder in (network.encoder, network.decoder):
        for layer in list(coder.children())[1:]:
            _carry_through(layer, same)
    first, last = _outer_convolutions(network.encoder)
    _carry(first, quarters / quarters.sum(1, keepdim=True))
    _carry(last, LATENT_CONTRAST * same, -LATENT_CONTRAST * half)
    first, last = _outer_convolutions(network.decoder)
    _carry(first, same / LATENT_CONTRAST, half)
    _carry(last, quarters.T)


def _quarters() -> Tensor:
    """Which of the 192 channels of a folded patch belong to each of its 4 quarters x 3 colours: [12, 192]."""
    colour, row, column = torch.meshgrid(torch.arange(3), torch.arange(8), torch.arange(8), indexing="ij")
    quarter = 3 * (2 * (row // 4) + column // 4) + colour
    return F.one_hot(quarter.flatten(), 12).T.float()


def _carry_through(layer: nn.Module, same: Tensor) -> None:
    """Make the first channels pass through a layer; `same` is their identity matrix."""
    if isinstance(layer, MemoryBlock):
        last = layer.conv[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
    elif isinstance(layer, TimePool):
        share = torch.zeros(len(same), layer.stride, layer.conv.out_channels)
        share[:, :, : len(same)] = same.unsqueeze(1) / layer.stride
        _carry(layer.conv, share.flatten(1))
    elif isinstance(layer, TimeGrow):
        for frame in range(layer.stride):
            _carry(layer.conv, same, first=frame * layer.conv.in_channels)
    elif isinstance(layer, nn.Conv2d):
        _carry(layer, same)


def _carry(conv: nn.Conv2d, weights: Tensor, bias: Tensor | None = None, first: int = 0) -> None:
    """Make output channels from `first` on of `weights` [outputs, inputs] times the first inputs alone."""
    outputs, inputs = weights.shape
    center = conv.kernel_size[0] // 2
    conv.weight[first : first + outputs] = 0
    conv.weight[first : first + outputs, :inputs, center, center] = weights
    if bias is not None and conv.bias is not None:
        conv.bias[first : first + outputs] = bias


def _outer_convolutions(coder: nn.Module) -> tuple[nn.Conv2d, nn.Conv2d]:
    found = [layer for layer in coder.children() if isinstance(layer, nn.Conv2d)]
    return found[0], found[-1]


def crops_loader(settings: AutoencoderTraining, device: torch.device) -> DataLoader[Tensor]:
    """Renders beside the training on a CPU; on a GPU in it, where it costs next to nothing."""
    workers = 1 if device.type == "cpu" else 0
    return DataLoader(Crops(settings, device), batch_size=None, num_workers=workers)


def autoencoder_losses(network: TAEHV, pictures: Tensor, latent_noise: float) -> Losses:
    """Of pictures [B, 1 + 4k, 3, h, w] that are encoded, disturbed and decoded."""
    latents = network.encode(pictures, network.start_encoding()).latents
    disturbed = latents + latent_noise * torch.randn_like(latents)
    seen = network.decode_raw(disturbed, network.start_decoding()).output
    error = seen - pictures
    losses = {
        "picture": error.abs().mean(),
        "chroma": (error - error.mean(2, keepdim=True)).abs().mean(),
        "edges": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        "change": error.diff(dim=1).abs().mean(),
        "coarse": F.avg_pool2d(error.flatten(0, 1), 8).abs().mean(),
        "moments": moments_loss(latents),
    }
    weights = {"picture": 1.0, "chroma": 1.0, "edges": 0.7, "change": 0.5, "coarse": 1.0, "moments": 0.02}
    return {"total": torch.stack([weights[name] * value for name, value in losses.items()]).sum(), **losses}


def moments_loss(latents: Tensor) -> Tensor:
    """How far each channel's mean is from 0 and its variance from 1, as a Gaussian's divergence from N(0, 1)."""
    channels = latents.transpose(0, 2).flatten(1)
    mean, variance = channels.mean(1), channels.var(1)
    return 0.5 * (mean.square() + variance - variance.clamp(min=1e-6).log() - 1).mean()

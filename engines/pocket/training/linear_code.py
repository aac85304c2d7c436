"""A linear code for patches of pictures, from their principal components: what the autoencoder starts as.

A group of four pictures is cut into patches of 8x8; a patch's latents are its first principal components, each
divided by its standard deviation, and it is drawn again from its own latents and its neighbors' by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.config.geometry import SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.vae.patch_vae import PatchVAE, ResidualBlock, TemporalConv

LATENT_NOISE = 0.03
"""On the latents from which patches are drawn, so that small errors stay small."""

RIDGE = 1e-6
"""Beside the mean square of the latents."""


@dataclass(frozen=True)
class LinearCode:
    """From patches of P values to C latents, and back from the latents of 3x3 patches.

    encode: [C, P] and mean [P]: latents are encode @ (patch - mean).
    decode: [9 C + 1, P], for a row of latents in the order of `F.unfold`, and a one.
    """

    encode: Tensor
    mean: Tensor
    decode: Tensor


def groups_of(pictures: Tensor) -> Tensor:
    """[B, 1 + 4k, 3, H, W] in 0..1 to the patches of its k whole groups: [B * k, P, H/8, W/8]."""
    groups = pictures[:, 1:].unflatten(1, (-1, TEMPORAL_FACTOR)).flatten(2, 3).flatten(0, 1)
    return F.pixel_unshuffle(groups, SPATIAL_FACTOR)


def fit(batches: Iterable[Tensor], channels: int) -> LinearCode:
    """The code of `channels` latents for batches of patches [N, P, h, w], which are gone through twice."""
    kept = list(batches)
    encode, mean = principal_components(kept, channels)
    inputs, outputs = 9 * channels + 1, len(mean)
    left, right = (torch.zeros(inputs, n, dtype=torch.float64, device=mean.device) for n in (inputs, outputs))
    count = 0
    for patches in kept:
        latents = torch.einsum("cp,nphw->nchw", encode, patches - mean[:, None, None])
        around = F.unfold(latents + LATENT_NOISE * torch.randn_like(latents), 3, padding=1)
        rows = F.pad(around.transpose(1, 2).flatten(0, 1), (0, 1), value=1.0).double()
        left += rows.T @ rows
        right += rows.T @ patches.flatten(2).transpose(1, 2).flatten(0, 1).double()
        count += len(rows)
    ridge = RIDGE * count * torch.eye(len(left), dtype=left.dtype, device=left.device)
    return LinearCode(encode, mean, torch.linalg.solve(left + ridge, right).float())


def principal_components(batches: Sequence[Tensor], channels: int) -> tuple[Tensor, Tensor]:
    """The first components of patches [N, P, h, w], each over its deviation: [channels, P]; and their mean [P]."""
    first = batches[0]
    size = first.shape[1]
    squares = torch.zeros(size, size, dtype=torch.float64, device=first.device)
    total, count = squares.new_zeros(size), 0
    for patches in batches:
        rows = patches.movedim(1, -1).flatten(0, -2)
        squares += (rows.T @ rows).double()
        total += rows.sum(0).double()
        count += len(rows)
    mean = total / count
    variances, components = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
    scaled = components.flip(1)[:, :channels] / variances.flip(0)[:channels].clamp(min=1e-9).sqrt()
    return scaled.T.float(), mean.float()


@torch.no_grad()
def start_from(network: PatchVAE, code: LinearCode) -> None:
    """Make `network` the linear code, and its convolutional parts such that they add nothing yet.

    Those begin at random (He et al. 2015), but the last layers of blocks and of the whole are zero, and what
    joins a frame with the one before sees it alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            nn.init.zeros_(block.conv2.weight)
        if isinstance(block, TemporalConv) and block.conv.kernel_size == (1, 1):
            nn.init.zeros_(block.conv.weight)
            nn.init.eye_(block.conv.weight[:, :, 0, 0])
    for coder in (network.encoder, network.decoder):
        nn.init.zeros_(_convolutions(coder.network)[-1].weight)
    _set_linear(network, code)


def _set_linear(network: PatchVAE, code: LinearCode) -> None:
    (encode,), (decode,) = (_convolutions(coder.linear) for coder in (network.encoder, network.decoder))
    assert encode.bias is not None
    assert decode.bias is not None
    nn.init.zeros_(encode.weight)
    encode.weight[:, :, 1, 1] = code.encode
    encode.bias.copy_(-code.encode @ code.mean)
    decode.weight.copy_(code.decode[:-1].T.view_as(decode.weight))
    decode.bias.copy_(code.decode[-1])


def _convolutions(layers: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]

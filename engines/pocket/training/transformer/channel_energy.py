"""What an error in each latent channel costs in the decoded pictures: what a flow loss is weighed with.

The principal components of the autoencoder's linear code differ much in that: an error in the first costs hundreds
of times what it costs in the last, and a loss that takes them as equal spends itself on the last.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.pocket.training.transformer.dataset import random_clip
from engines.pocket.world.renderer import Renderer
from engines.vae.protocol import StreamingVAE

CLIPS = 8
FRAMES = 9
NOISE = 0.2
SEED = 9


@torch.no_grad()
def channel_energy(codec: StreamingVAE, stream: StreamConfig, device: torch.device) -> Tensor:
    """Squared error of the pictures for a unit of squared error in each channel: [channels], mean one."""
    generator, noise = np.random.default_rng(SEED), torch.Generator(device).manual_seed(SEED)
    clips = [random_clip(generator, None) for _ in range(CLIPS)]
    pictures = Renderer(stream.height, stream.width, device).render(clips, [0] * CLIPS, FRAMES)
    latents = codec.encode(pictures, codec.start_encoding()).latents
    true = codec.decode(latents, codec.start_decoding()).frames
    costs = []
    for channel in range(latents.shape[2]):
        disturbed = latents.clone()
        disturbed[:, :, channel] += NOISE * torch.randn(
            disturbed[:, :, channel].shape, generator=noise, device=device
        )
        costs.append((codec.decode(disturbed, codec.start_decoding()).frames - true).square().mean())
    energy = torch.stack(costs)
    return energy / energy.mean()

"""Codecs of tiny shapes with visible pictures, and their graphs."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from engines.config.networks import AutoencoderConfig, PatchVAEConfig, TAEHVConfig, VAEConfig
from engines.export.decoders import Codec, DecoderCall, export_decoder
from engines.export.graph import StageGraph
from engines.loading.model import build_vae

CODECS: dict[str, AutoencoderConfig] = {
    "wan": VAEConfig(dim=4, latent_mean=(0.3, -0.2, 0.1), latent_std=(1.5, 0.7, 1.1)),
    "taehv": TAEHVConfig(decoder_widths=(16, 8, 8, 4), encoder_width=4, latent_channels=3),
    "pocket": PatchVAEConfig(encoder_widths=(8, 8), decoder_widths=(16, 8, 8), latent_channels=3),
}

HEIGHT, WIDTH = 32, 48


def random_codec(kind: str) -> Codec:
    torch.manual_seed(3)
    codec = build_vae(CODECS[kind]).requires_grad_(False)
    for layer in codec.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.xavier_normal_(layer.weight)
    return codec


class Exported:
    """A codec and the graphs of all its kinds of call, made once for all processes that share `folder`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.codec = random_codec(kind)
        made = folder / f"{kind}.pickle"
        with FileLock(folder / f"{kind}.lock"):
            if not made.exists():
                made.write_bytes(pickle.dumps(self._export(folder / kind)))
        self.graphs: dict[str, StageGraph] = pickle.loads(made.read_bytes())

    def _export(self, folder: Path) -> dict[str, StageGraph]:
        calls = [DecoderCall(first, frames, HEIGHT, WIDTH) for first in (True, False) for frames in (1, 2, 3)]
        return {
            call.name: export_decoder(self.codec, call, folder / call.name, "weights", torch.float32)
            for call in calls
        }

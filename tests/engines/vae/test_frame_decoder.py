"""What a decoder of frames does before the first viewer comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from engines.config.presets import preset
from engines.device.host_copy import HostCopier
from engines.device.side_stream import SideStream
from engines.loading.model import Model
from engines.vae import frame_decoder
from engines.vae.conv_cache import ConvCache
from engines.vae.frame_decoder import FrameDecoder
from engines.vae.protocol import Decoded

CPU = torch.device("cpu")


def test_the_fastest_convolutions_are_searched_for_while_it_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    searched, decoded = list[torch.device](), list[tuple[bool, int]]()

    @contextmanager
    def searching(device: torch.device) -> Iterator[None]:
        searched.append(device)
        yield
        searched.clear()

    config = preset("tiny-taehv")
    vae = Model.random(config, 1, networks=["codec"]).vae
    decode = vae.decode

    def noted(latents: Tensor, cache: ConvCache) -> Decoded:
        decoded.append((searched == [CPU], latents.shape[1]))
        return decode(latents, cache)

    monkeypatch.setattr(frame_decoder, "searching_convolutions", searching)
    monkeypatch.setattr(vae, "decode", noted)
    decoder = FrameDecoder(vae, SideStream(CPU), HostCopier(CPU))
    decoder.warm_up(config.stream, config.vae.latent_channels, torch.float32)
    assert decoded == [(True, config.stream.blocks.frames_of(block)) for block in range(3)]
    latents = torch.zeros(config.stream.latent_shape(config.vae.latent_channels, 3))
    decoder.decode(latents, decoder.empty_cache())
    assert decoded[-1] == (False, 3)

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
from tests.support.fake_cuda import install

CPU = torch.device("cpu")


def test_a_cache_is_rebuilt_of_latents_on_the_host_while_blocks_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("tiny-taehv")
    vae, cuda = Model.random(config, 1, networks=["codec"]).vae, install(monkeypatch)
    monkeypatch.setattr(frame_decoder, "to_device", lambda latents, _: latents)
    decoder = FrameDecoder(vae, SideStream(torch.device("cuda:0")), HostCopier(CPU))
    cuda.main.launch()
    blocks = [torch.zeros(config.stream.latent_shape(config.vae.latent_channels, 3))] * 2
    assert decoder.rebuild_cache(blocks).frames_seen > 0


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

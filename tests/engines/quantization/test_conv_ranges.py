"""What a decoder's convolutions read, against hooks on PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.config.networks import AutoencoderConfig, PatchVAEConfig, TAEHVConfig
from engines.errors import ConfigError
from engines.export.decoders import Codec
from engines.loading.model import build_vae
from engines.quantization.conv_ranges import conv_ranges

CODECS: dict[str, AutoencoderConfig] = {
    "taehv": TAEHVConfig(decoder_widths=(32, 32, 8, 4), encoder_width=4, latent_channels=3),
    "pocket": PatchVAEConfig(encoder_widths=(8, 8), decoder_widths=(32, 32, 8), latent_channels=3),
}


def random_codec(kind: str) -> Codec:
    torch.manual_seed(3)
    return build_vae(CODECS[kind]).eval().requires_grad_(False)


def seen_by_hooks(codec: Codec, streams: list[Tensor]) -> dict[str, float]:
    """Of all convolutions, by the name of their weight."""
    seen = dict[str, float]()
    for name, layer in codec.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):

            def keep(module: nn.Module, read: tuple[Tensor], weight: str = f"codec.{name}.weight") -> None:
                seen[weight] = max(seen.get(weight, 0.0), float(read[0].abs().max()))

            layer.register_forward_pre_hook(keep)
    for latents in streams:
        codec.decode(latents, codec.start_decoding())
    return seen


@pytest.mark.parametrize("kind", CODECS)
def test_ranges_are_the_largest_of_all_streams(kind: str) -> None:
    random = torch.Generator().manual_seed(1)
    streams = [scale * torch.randn(1, 3, 3, 4, 6, generator=random) for scale in (1, 3)]
    found = conv_ranges(random_codec(kind), streams)
    seen = seen_by_hooks(random_codec(kind), streams)
    known = found.keys() & seen.keys()
    assert len(known) >= 4
    for weight in known:
        assert found[weight] == pytest.approx(seen[weight], rel=1e-4), weight


def test_without_streams_nothing_is_known() -> None:
    with pytest.raises(ConfigError, match="no streams to watch"):
        conv_ranges(random_codec("taehv"), [])

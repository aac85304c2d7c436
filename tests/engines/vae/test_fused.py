"""Codecs that run on fused operations, beside the same ones that run on torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from engines.config.networks import PatchVAEConfig, TAEHVConfig, VAEConfig
from engines.errors import StreamError
from engines.loading.model import Autoencoder
from engines.vae import causal_conv
from engines.vae.patch_vae import PatchVAE
from engines.vae.taehv import TAEHV
from engines.vae.wan_vae import WanVAE
from kernels.vae.fused import FUSED, REFERENCE
from kernels.vae.ops import VAEOps
from tests.engines.vae.pieces import assert_equal, decode, encode

LATENTS = torch.randn(1, 6, 3, 2, 3, generator=torch.Generator().manual_seed(1))
PICTURES = torch.rand(1, 13, 3, 16, 24, generator=torch.Generator().manual_seed(2))

VAE = TypeVar("VAE", WanVAE, TAEHV, PatchVAE)
Make = Callable[[], Autoencoder]


def random_vae() -> WanVAE:
    return enlivened(
        WanVAE(VAEConfig(dim=4, residual_blocks=1, latent_mean=(0.3, -0.2, 0.1), latent_std=(1.5, 0.7, 1.1)))
    )


def random_taehv() -> TAEHV:
    return enlivened(TAEHV(TAEHVConfig(decoder_widths=(10, 8, 6, 4), encoder_width=6, latent_channels=3)))


def wide_taehv() -> TAEHV:
    """Nothing but its head makes less than whole groups of channels."""
    return enlivened(TAEHV(TAEHVConfig(decoder_widths=(16, 8, 8, 8), encoder_width=8, latent_channels=3)))


def random_patch_vae() -> PatchVAE:
    return enlivened(PatchVAE(PatchVAEConfig(encoder_widths=(8, 6), decoder_widths=(10, 8, 4), latent_channels=3)))


def enlivened(codec: VAE) -> VAE:
    """Weights from a seed: none of them 0, and large enough to see the whole past."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in codec.requires_grad_(False).named_parameters():
        if name.endswith("gamma"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.normal_(0.0, (1 / fan_in) ** 0.5, generator=generator)
    return codec


def fused(make: Make, ops: VAEOps) -> Autoencoder:
    codec = make()
    codec.fuse(ops)
    return codec


every = pytest.mark.parametrize("make", [random_vae, random_taehv, random_patch_vae])
either = pytest.mark.parametrize("ops", [FUSED, REFERENCE], ids=["triton", "reference"])


@either
@every
def test_two_pieces_decode_as_without_fusion_and_a_failed_call_between_changes_nothing(
    make: Make, ops: VAEOps
) -> None:
    codec, plain = fused(make, ops), make()
    pieces = LATENTS[:, :1], LATENTS[:, 1:3]
    one, cache = codec.decode(pieces[0], codec.start_decoding())
    before = [t.clone() for t in cache.frames if t is not None]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with codec.decoder.register_forward_hook(fail), pytest.raises(RuntimeError, match="out of memory"):
        codec.decode(-pieces[1], cache)
    assert all(map(torch.equal, (t for t in cache.frames if t is not None), before))
    two = codec.decode(pieces[1], cache).frames
    assert_equal(torch.cat((one, two), dim=1), decode(plain, pieces))


@either
@every
def test_two_pieces_encode_as_without_fusion(make: Make, ops: VAEOps) -> None:
    pieces = PICTURES[:, :5].split((1, 4), dim=1)
    assert_equal(encode(fused(make, ops), pieces), encode(make(), pieces))


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1), (1, 2, 3), (3, 3), (6,)], ids=str)
@every
def test_any_split_of_the_latents_decodes_the_same(make: Make, split: tuple[int, ...]) -> None:
    assert_equal(decode(fused(make, REFERENCE), LATENTS.split(split, dim=1)), decode(make(), (LATENTS,)))


@pytest.mark.parametrize("split", [(1, 4, 4, 4), (1, 12), (9, 4)], ids=str)
@every
def test_any_split_of_the_pictures_encodes_the_same(make: Make, split: tuple[int, ...]) -> None:
    assert_equal(encode(fused(make, REFERENCE), PICTURES.split(split, dim=1)), encode(make(), (PICTURES,)))


class Convolutions(TorchFunctionMode):
    """Notes how many channels each convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made = list[int]()

    @override
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (F.conv2d, F.conv3d):
            self.made.append(len(args[1]))
        return function(*args, **(kwargs or {}))


@either
@pytest.mark.parametrize("make", [random_vae, random_taehv, wide_taehv, random_patch_vae])
def test_outputs_that_fill_up_groups_for_tensor_cores_change_nothing(
    make: Make, ops: VAEOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_conv, "uses_tensor_cores", lambda x: True)
    with Convolutions() as convolutions:
        filled = decode(fused(make, ops), LATENTS[:, :3].split((1, 2), dim=1))
    assert_equal(filled, decode(make(), (LATENTS[:, :3],)))
    head = convolutions.made[-1]
    assert head % causal_conv.TENSOR_CORE_CHANNELS == 0


@every
def test_a_history_holds_nothing_but_its_own_tensors(make: Make) -> None:
    codec = fused(make, REFERENCE)
    old = codec.decode(LATENTS[:, :3], codec.start_decoding()).cache
    new = codec.decode(LATENTS[:, 3:], old).cache
    kept = [t for cache in (old, new) for t in cache.frames if t is not None]
    assert sum(t.untyped_storage().nbytes() for t in kept) == old.nbytes + new.nbytes
    assert len({t.data_ptr() for t in kept}) == len(kept)


@every
def test_a_stream_may_be_fused_between_two_pieces(make: Make) -> None:
    plain, other = make(), fused(make, REFERENCE)
    one, two, three = LATENTS.split(2, dim=1)
    a, cache = plain.decode(one, plain.start_decoding())
    b, cache = other.decode(two, cache)
    c, cache = plain.decode(three, cache)
    assert_equal(torch.cat((a, b, c), dim=1), decode(plain, (LATENTS,)))


@every
def test_two_streams_may_go_on_from_one_history(make: Make) -> None:
    codec = fused(make, REFERENCE)
    cache = codec.decode(LATENTS[:, :3], codec.start_decoding()).cache
    expected = codec.decode(LATENTS[:, 3:], cache).frames
    codec.decode(-LATENTS[:, 3:], cache)
    assert torch.equal(codec.decode(LATENTS[:, 3:], cache).frames, expected)


@every
def test_the_weights_lie_channels_last_and_are_the_same(make: Make) -> None:
    codec, plain = fused(make, REFERENCE), make().state_dict()
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}
    assert list(codec.state_dict()) == list(plain)
    for name, weight in codec.state_dict().items():
        assert torch.equal(weight, plain[name])
        if name.endswith("weight") and not name.startswith("conv"):
            assert weight.is_contiguous(memory_format=layout[weight.ndim])


def test_in_16_bits_fusion_is_no_further_from_fp32_than_twice_torchs_own_operators() -> None:
    first = LATENTS[:, :1]
    truth = decode(random_vae(), (first,))
    codecs = random_vae().half(), fused(lambda: random_vae().half(), FUSED)
    torchs, ours = ((decode(codec, (first.half(),)) - truth).square().mean().sqrt() for codec in codecs)
    assert ours < 2 * torchs


@every
def test_a_fused_stream_cannot_change_its_size(make: Make) -> None:
    codec = fused(make, REFERENCE)
    cache = codec.decode(LATENTS[:, :1], codec.start_decoding()).cache
    with pytest.raises(StreamError, match="layer 0 remembers"):
        codec.decode(LATENTS[..., :2], cache)

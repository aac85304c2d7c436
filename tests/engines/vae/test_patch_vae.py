from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.config.networks import PatchVAEConfig
from engines.errors import ConfigError, StreamError
from engines.vae.patch_vae import PatchVAE
from tests.engines.vae.pieces import assert_equal, decode, encode

TINY = PatchVAEConfig(encoder_widths=(8, 6), decoder_widths=(10, 8, 4), latent_channels=3)
LATENTS = torch.randn(2, 6, 3, 2, 3, generator=torch.Generator().manual_seed(1))
PICTURES = torch.rand(2, 13, 3, 16, 24, generator=torch.Generator().manual_seed(2))


def random_patch_vae() -> PatchVAE:
    """Weights larger than torch's own, so that the oldest frame in the memory can be seen."""
    generator = torch.Generator().manual_seed(3)
    vae = PatchVAE(TINY).requires_grad_(False)
    for parameter in vae.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.normal_(0.0, (1 / fan_in) ** 0.5, generator=generator)
    return vae


@pytest.fixture(scope="module")
def vae() -> PatchVAE:
    return random_patch_vae()


class Plain:
    """The autoencoder over one whole clip, by the names of its weights."""

    def __init__(self, vae: PatchVAE) -> None:
        self.weights = vae.state_dict()

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        padding = 1 if weight.shape[-1] > 1 else 0
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride, padding)

    def block(self, x: Tensor, name: str) -> Tensor:
        return x + self.conv(self.conv(x, f"{name}.conv1").relu(), f"{name}.conv2")

    def with_past(self, x: Tensor, name: str) -> Tensor:
        return self.conv(torch.cat((x, torch.cat((x[:1], x[:-1]))), dim=1), f"{name}.conv")

    def encode(self, pictures: Tensor) -> Tensor:
        groups = torch.cat((*[pictures[:1]] * 3, pictures)).reshape(-1, 12, *pictures.shape[-2:])
        x = self.conv(F.pixel_unshuffle(groups, 4), "encoder.network.1")
        x = self.with_past(x, "encoder.network.2")
        for position in (3, 4):
            x = self.block(x, f"encoder.network.{position}")
        x = self.conv(x, "encoder.network.5", stride=2).relu()
        for position in (7, 8):
            x = self.block(x, f"encoder.network.{position}")
        linear = self.conv(F.pixel_unshuffle(groups, 8), "encoder.linear.1")
        return linear + self.conv(x.relu(), "encoder.network.10")

    def decode(self, latents: Tensor) -> Tensor:
        x = self.with_past(latents, "decoder.network.0")
        for position in (1, 2):
            x = self.block(x, f"decoder.network.{position}")
        x = F.pixel_shuffle(self.conv(x.relu(), "decoder.network.4"), 2)
        for mixed in (6, 9):
            x = self.with_past(x, f"decoder.network.{mixed}")
            for position in (mixed + 1, mixed + 2):
                x = self.block(x, f"decoder.network.{position}")
        x = F.pixel_shuffle(self.conv(x.relu(), "decoder.network.13"), 2)
        x = self.with_past(x, "decoder.network.15")
        for position in (16, 17):
            x = self.block(x, f"decoder.network.{position}")
        x = F.pixel_shuffle(self.conv(x.relu(), "decoder.network.19"), 2)
        x = x + F.pixel_shuffle(self.conv(latents, "decoder.linear.0"), 8)
        return x.reshape(-1, 3, *x.shape[-2:])[3:]


def test_decoding_agrees_with_a_plain_computation(vae: PatchVAE) -> None:
    raw = torch.stack([Plain(vae).decode(clip) for clip in LATENTS])
    assert_equal(vae.decode_raw(LATENTS, vae.start_decoding()).output, raw)
    assert_equal(decode(vae, (LATENTS,)), raw.clamp(0, 1))


def test_encoding_agrees_with_a_plain_computation(vae: PatchVAE) -> None:
    assert_equal(encode(vae, (PICTURES,)), torch.stack([Plain(vae).encode(clip) for clip in PICTURES]))


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1), (2, 1, 3), (3, 3), (1, 5)], ids=str)
def test_any_split_of_the_latents_decodes_the_same(vae: PatchVAE, split: tuple[int, ...]) -> None:
    assert_equal(decode(vae, LATENTS.split(split, dim=1)), decode(vae, (LATENTS,)))


@pytest.mark.parametrize("split", [(1, 4, 4, 4), (1, 12), (5, 8), (9, 4)], ids=str)
def test_any_split_of_the_pictures_encodes_the_same(vae: PatchVAE, split: tuple[int, ...]) -> None:
    assert_equal(encode(vae, PICTURES.split(split, dim=1)), encode(vae, (PICTURES,)))


@pytest.mark.parametrize("picture", [0, 1, 4, 5, 12])
def test_a_picture_is_first_seen_in_the_latent_that_decodes_to_it(vae: PatchVAE, picture: int) -> None:
    changed = PICTURES.clone()
    changed[:, picture] += 1.0
    seen = (encode(vae, (changed,)) != encode(vae, (PICTURES,))).any(dim=4).any(dim=3).any(dim=2).any(dim=0)
    assert seen.int().argmax() == (picture + 3) // 4


def test_the_four_pictures_of_a_latent_frame_differ(vae: PatchVAE) -> None:
    pictures = vae.decode_raw(LATENTS, vae.start_decoding()).output
    assert pictures.shape == (2, 21, 3, 16, 24)
    assert (pictures.diff(dim=1).abs().mean(dim=(2, 3, 4)) > 0.01).all()


def test_decoded_pictures_are_fp32_between_0_and_1() -> None:
    pictures = decode(random_patch_vae().bfloat16(), (LATENTS.bfloat16() * 9,))
    assert pictures.dtype == torch.float32
    assert (pictures.min().item(), pictures.max().item()) == (0.0, 1.0)


def test_a_stream_of_pictures_starts_with_one_and_goes_on_in_fours(vae: PatchVAE) -> None:
    with pytest.raises(StreamError, match=r"4 pictures at the start .* 1 \+ 4k"):
        vae.encode(PICTURES[:, :4], vae.start_encoding())
    cache = vae.encode(PICTURES[:, :1], vae.start_encoding()).cache
    with pytest.raises(StreamError, match=r"5 more pictures .* 4k"):
        vae.encode(PICTURES[:, :5], cache)


def test_latents_with_other_channels_are_refused(vae: PatchVAE) -> None:
    with pytest.raises(ValueError, match=r"are not \[batch, frames, 3, height, width\]"):
        vae.decode(torch.zeros(1, 1, 4, 2, 2), vae.start_decoding())


def test_a_stream_cannot_change_its_size(vae: PatchVAE) -> None:
    cache = vae.decode(LATENTS, vae.start_decoding()).cache
    with pytest.raises(StreamError, match="layer 0 remembers"):
        vae.decode(LATENTS[..., :2], cache)


def test_a_failed_call_leaves_the_old_history_usable() -> None:
    vae = random_patch_vae()
    cache = vae.decode(LATENTS[:, :3], vae.start_decoding()).cache
    expected = vae.decode(LATENTS[:, 3:], cache).frames

    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("out of memory")

    with vae.decoder.get_submodule("network.19").register_forward_pre_hook(fail), pytest.raises(RuntimeError):
        vae.decode(LATENTS[:, 3:], cache)
    assert torch.equal(vae.decode(LATENTS[:, 3:], cache).frames, expected)


def test_two_streams_do_not_touch(vae: PatchVAE) -> None:
    mine, theirs = LATENTS[:1].split(2, dim=1), LATENTS[1:].split(2, dim=1)
    one, other, pictures = vae.start_decoding(), vae.start_decoding(), []
    for my_piece, their_piece in zip(mine, theirs, strict=True):
        frames, one = vae.decode(my_piece, one)
        _, other = vae.decode(their_piece, other)
        pictures.append(frames)
    assert torch.equal(torch.cat(pictures, dim=1), decode(vae, mine))


def test_the_decoder_memory_is_the_least_that_suffices() -> None:
    vae = random_patch_vae().double()
    memory = vae.decoder_receptive_field
    latents = torch.randn(1, memory + 4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    past, following = latents.split((memory + 3, 1), dim=1)

    def after(frames: int) -> Tensor:
        cache = vae.decode(past[:, -frames:], vae.start_decoding()).cache
        return vae.decode_raw(following, cache).output

    truth = after(memory + 3)
    assert memory == 4
    assert (after(memory) - truth).abs().max() < 1e-12
    assert (after(memory - 1) - truth).abs().max() > 1e-9


def test_a_width_of_nought_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decoder_widths\[2\] is 0"):
        PatchVAEConfig(decoder_widths=(8, 8, 0))

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file
from torch import Tensor, nn

from engines.config.networks import VAEConfig
from engines.errors import StreamError
from engines.vae.conv_cache import ConvCache
from engines.vae.protocol import StreamingVAE
from engines.vae.wan_vae import RMSNorm, WanVAE
from tests.engines.vae.pieces import assert_equal, decode, encode

RECORDING = Path(__file__).parents[2] / "assets" / "recordings" / "vae_text_encoder.safetensors"
TINY = VAEConfig(dim=4, latent_mean=(0.3, -0.2, 0.1), latent_std=(1.5, 0.7, 1.1))
LATENTS = torch.randn(2, 6, 3, 2, 3, generator=torch.Generator().manual_seed(1))
PICTURES = torch.rand(2, 13, 3, 16, 24, generator=torch.Generator().manual_seed(2))

# Wan's names and diffusers' names of the same layers.
DIFFUSERS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
    "head.0": "norm_out",
    "head.2": "conv_out",
    "coder.conv1": "coder.conv_in",
    "downsamples": "down_blocks",
}


@pytest.fixture(scope="module")
def recording() -> dict[str, Tensor]:
    return {name: t for name, t in load_file(RECORDING).items() if name.startswith("vae.")}


@pytest.fixture(scope="module")
def recorded_vae(recording: dict[str, Tensor]) -> WanVAE:
    vae = WanVAE(VAEConfig(dim=8))
    prefix = "vae.model."
    vae.load_state_dict({name.removeprefix(prefix): t for name, t in recording.items() if name.startswith(prefix)})
    return vae.requires_grad_(False)


def random_vae(config: VAEConfig = TINY) -> WanVAE:
    torch.manual_seed(3)
    vae = WanVAE(config).requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return vae


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return random_vae()


def test_a_whole_clip_decodes_as_recorded(recorded_vae: WanVAE, recording: dict[str, Tensor]) -> None:
    latents = recording["vae.z"].transpose(1, 2)
    assert_equal(recorded_vae.decode_raw(latents, recorded_vae.start_decoding()).output, recording["vae.whole"])


def test_blocks_of_a_stream_decode_as_recorded(recorded_vae: WanVAE, recording: dict[str, Tensor]) -> None:
    cache = recorded_vae.start_decoding()
    for i, block in enumerate(recording["vae.z"].transpose(1, 2).split(3, dim=1)):
        pictures, cache = recorded_vae.decode_raw(block, cache)
        assert_equal(pictures, recording[f"vae.stream.{i}"])


def test_pictures_encode_as_recorded(recorded_vae: WanVAE, recording: dict[str, Tensor]) -> None:
    pictures = recording["vae.pixels"].transpose(1, 2) * 0.5 + 0.5
    latents = recorded_vae.encode(pictures, recorded_vae.start_encoding()).latents
    assert_equal(latents, recording["vae.encoded"].transpose(1, 2))


def test_means_are_latents_before_they_are_normalized(recorded_vae: WanVAE, recording: dict[str, Tensor]) -> None:
    pixels = recording["vae.pixels"].transpose(1, 2)
    means = recorded_vae.encode_means(pixels, recorded_vae.start_encoding()).latents
    config = recorded_vae.config
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.latent_mean, config.latent_std))
    assert_equal((means - mean) / std, recording["vae.encoded"].transpose(1, 2))


def test_decoded_pictures_are_between_0_and_1(recorded_vae: WanVAE, recording: dict[str, Tensor]) -> None:
    pictures = decode(recorded_vae, (recording["vae.z"].transpose(1, 2),))
    assert_equal(pictures, (recording["vae.whole"].transpose(1, 2) * 0.5 + 0.5).clamp(0, 1))


def test_a_bf16_model_decodes_to_fp32_without_rounding_again() -> None:
    vae = random_vae().bfloat16()
    raw = vae.decode_raw(LATENTS.bfloat16(), vae.start_decoding()).output.transpose(1, 2)
    assert torch.equal(decode(vae, (LATENTS.bfloat16(),)), raw.double().clamp(-1, 1).float() * 0.5 + 0.5)


def diffusers_name(name: str) -> str:
    if name.startswith("conv"):
        return {"conv1": "quant_conv", "conv2": "post_quant_conv"}[name[:5]] + name[5:]
    for ours, theirs in DIFFUSERS.items():
        name = name.replace(ours, theirs)
    if "upsamples" in name:
        _, _, position, rest = name.split(".", 3)
        level, layer = divmod(int(position), TINY.residual_blocks + 2)
        kind = "upsamplers.0" if layer == TINY.residual_blocks + 1 else f"resnets.{layer}"
        return f"decoder.up_blocks.{level}.{kind}.{rest}"
    return name


@pytest.fixture(scope="module")
def diffusers_vae(vae: WanVAE) -> AutoencoderKLWan:
    other = AutoencoderKLWan(base_dim=TINY.dim, z_dim=TINY.latent_channels).requires_grad_(False)
    other.load_state_dict({diffusers_name(name): t for name, t in vae.state_dict().items()})
    return other


def test_decoding_agrees_with_diffusers(vae: WanVAE, diffusers_vae: AutoencoderKLWan) -> None:
    z = LATENTS * torch.tensor(TINY.latent_std).view(-1, 1, 1) + torch.tensor(TINY.latent_mean).view(-1, 1, 1)
    theirs = diffusers_vae.decode(z.transpose(1, 2)).sample.transpose(1, 2)
    assert_equal(decode(vae, (LATENTS,)), theirs * 0.5 + 0.5)


def test_encoding_agrees_with_diffusers(vae: WanVAE, diffusers_vae: AutoencoderKLWan) -> None:
    mean = diffusers_vae.encode(PICTURES.transpose(1, 2) * 2 - 1).latent_dist.mode().transpose(1, 2)
    theirs = mean - torch.tensor(TINY.latent_mean).view(-1, 1, 1)
    assert_equal(encode(vae, (PICTURES,)), theirs / torch.tensor(TINY.latent_std).view(-1, 1, 1))


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1), (2, 1, 3), (3, 3), (1, 5)], ids=str)
def test_any_split_of_the_latents_decodes_the_same(vae: WanVAE, split: tuple[int, ...]) -> None:
    assert_equal(decode(vae, LATENTS.split(split, dim=1)), decode(vae, (LATENTS,)))


@pytest.mark.parametrize("split", [(1, 4, 4, 4), (1, 12), (5, 8), (9, 4)], ids=str)
def test_any_split_of_the_pictures_encodes_the_same(vae: WanVAE, split: tuple[int, ...]) -> None:
    assert_equal(encode(vae, PICTURES.split(split, dim=1)), encode(vae, (PICTURES,)))


@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_a_stream_of_pictures_starts_with_one_and_fours(vae: WanVAE, count: int) -> None:
    with pytest.raises(StreamError, match=rf"{count} pictures at the start .* 1 \+ 4k"):
        vae.encode(PICTURES[:, :count], vae.start_encoding())


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_stream_of_pictures_goes_on_in_fours(vae: WanVAE, count: int) -> None:
    cache = vae.encode(PICTURES[:, :1], vae.start_encoding()).cache
    with pytest.raises(StreamError, match=f"{count} more pictures .* 4k"):
        vae.encode(PICTURES[:, :count], cache)


@pytest.mark.parametrize("shape", [(1, 1, 4, 2, 2), (1, 3, 2, 2), (1, 0, 3, 2, 2)], ids=str)
def test_latents_of_another_shape_are_refused(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"are not \[batch, frames, 3, height, width\]"):
        vae.decode(torch.zeros(shape), vae.start_decoding())


@pytest.mark.parametrize("shape", [(1, 1, 4, 16, 16), (1, 1, 3, 12, 16), (1, 1, 3, 16, 20)], ids=str)
def test_pictures_of_another_shape_are_refused(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8|are not"):
        vae.encode(torch.zeros(shape), vae.start_encoding())


@pytest.mark.parametrize(
    "other", [LATENTS[:1], LATENTS[..., :2], LATENTS.double()], ids=["batch", "size", "dtype"]
)
def test_a_stream_cannot_change_its_size_or_dtype(other: Tensor) -> None:
    vae = random_vae()
    cache = vae.decode(LATENTS[:, :1], vae.start_decoding()).cache
    with pytest.raises(StreamError, match="layer 0 remembers"):
        vae.to(other.dtype).decode(other, cache)


def test_the_history_of_another_network_is_refused(vae: WanVAE) -> None:
    with pytest.raises(StreamError, match="24 layers; this network has 32"):
        vae.decode(LATENTS, vae.start_encoding())


def test_a_failed_call_leaves_the_old_history_usable() -> None:
    vae = random_vae()
    cache = vae.decode(LATENTS[:, :3], vae.start_decoding()).cache
    expected = vae.decode(LATENTS[:, 3:], cache).frames

    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("out of memory")

    with vae.decoder.get_submodule("head.2").register_forward_pre_hook(fail), pytest.raises(RuntimeError):
        vae.decode(LATENTS[:, 3:], cache)
    assert torch.equal(vae.decode(LATENTS[:, 3:], cache).frames, expected)


def test_two_streams_do_not_touch(vae: WanVAE) -> None:
    def turns(latents: Tensor) -> tuple[Tensor, ...]:
        return latents.split(2, dim=1)

    alone = decode(vae, turns(LATENTS[:1]))
    one, other, pictures = vae.start_decoding(), vae.start_decoding(), []
    for mine, theirs in zip(turns(LATENTS[:1]), turns(LATENTS[1:]), strict=True):
        frames, one = vae.decode(mine, one)
        _, other = vae.decode(theirs, other)
        pictures.append(frames)
    assert torch.equal(torch.cat(pictures, dim=1), alone)


def warmed_up_on(codec: StreamingVAE, latents: Tensor, memory: int) -> ConvCache:
    return codec.decode(latents[:, -memory:], codec.start_decoding()).cache


@pytest.mark.parametrize(("residual_blocks", "memory"), [(1, 30), (2, 38)])
def test_the_decoder_memory_is_the_least_that_suffices(residual_blocks: int, memory: int) -> None:
    vae = random_vae(VAEConfig(4, residual_blocks=residual_blocks, latent_mean=(0.0,), latent_std=(1.0,))).double()
    latents = torch.randn(1, memory + 4, 1, 1, 1, dtype=torch.float64)
    past, following = latents.split((memory + 3, 1), dim=1)
    truth = vae.decode_raw(following, warmed_up_on(vae, past, memory + 3)).output
    enough = vae.decode_raw(following, warmed_up_on(vae, past, memory)).output
    too_few = vae.decode_raw(following, warmed_up_on(vae, past, memory - 1)).output
    assert vae.decoder_receptive_field == memory
    assert (enough - truth).abs().max() < 1e-12
    assert (too_few - truth).abs().max() > 1e-10


def test_the_real_sizes_are_those_of_the_checkpoint() -> None:
    with torch.device("meta"):
        vae = WanVAE(VAEConfig())
    assert vae.decoder_receptive_field == 38
    assert len(vae.state_dict()) == 194
    parts = [sum(p.numel() for p in part.parameters()) for part in (vae, vae.encoder, vae.decoder)]
    assert parts == [126_892_531, 53_595_872, 73_295_331]


def test_weights_put_into_a_model_on_meta_decode_the_same(vae: WanVAE) -> None:
    with torch.device("meta"):
        built = WanVAE(TINY)
    built.load_state_dict(vae.state_dict(), assign=True)
    assert torch.equal(decode(built, (LATENTS,)), decode(vae, (LATENTS,)))


def test_bf16_latents_are_divided_by_a_rounded_reciprocal() -> None:
    vae = random_vae().bfloat16()
    mean, std = (
        torch.tensor(values, dtype=torch.bfloat16).view(-1, 1, 1) for values in (TINY.latent_mean, TINY.latent_std)
    )
    z = (LATENTS.bfloat16() / (1 / std) + mean).transpose(1, 2)
    expected = vae.decoder.advance(vae.conv2(z), vae.start_decoding(), frames=6).output
    assert torch.equal(vae.decode_raw(LATENTS.bfloat16(), vae.start_decoding()).output, expected)


def test_a_history_holds_on_to_nothing_but_its_own_tensors(vae: WanVAE) -> None:
    cache = vae.decode(LATENTS, vae.start_decoding()).cache
    kept = [t for t in cache.frames if t is not None]
    assert len(kept) == 32
    assert sum(t.untyped_storage().nbytes() for t in kept) == cache.nbytes


def test_a_norm_in_fp16_takes_a_vector_of_zeros() -> None:
    """The least length by which torch divides is none in fp16."""
    norm = RMSNorm(8, trailing_axes=2).half()
    assert torch.equal(norm(torch.zeros(1, 8, 2, 2).half()), torch.zeros(1, 8, 2, 2).half())


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0, 3e4])
def test_a_norm_in_fp16_is_that_of_fp32_rounded(size: float) -> None:
    """The squares of the largest of these are too large for fp16, and those of the smallest are too small."""
    torch.manual_seed(1)
    norm, x = RMSNorm(64, trailing_axes=2), (size * torch.randn(1, 64, 3, 5)).clamp(-6e4, 6e4).half()
    torch.testing.assert_close(norm.half()(x).float(), norm.float()(x.float()), rtol=2e-3, atol=1e-3)

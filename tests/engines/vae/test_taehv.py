from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.config.networks import TAEHVConfig
from engines.errors import ConfigError, StreamError
from engines.vae.taehv import TAEHV, fit_time_grow
from tests.engines.vae.pieces import assert_equal, decode, encode

TINY = TAEHVConfig(decoder_widths=(10, 8, 6, 4), encoder_width=6, latent_channels=3)
LATENTS = torch.randn(2, 6, 3, 2, 3, generator=torch.Generator().manual_seed(1))
PICTURES = torch.rand(2, 13, 3, 16, 24, generator=torch.Generator().manual_seed(2))


def random_taehv() -> TAEHV:
    """Weights larger than torch's own, so that the oldest frame in the memory can be seen."""
    generator = torch.Generator().manual_seed(3)
    taehv = TAEHV(TINY).requires_grad_(False)
    for parameter in taehv.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.normal_(0.0, (1 / fan_in) ** 0.5, generator=generator)
    return taehv


@pytest.fixture(scope="module")
def taehv() -> TAEHV:
    return random_taehv()


class Plain:
    """Half of the autoencoder over one whole clip [T, C, H, W], in the order of the checkpoint's sequence."""

    def __init__(self, weights: dict[str, Tensor], half: str) -> None:
        self.weights = {name.removeprefix(f"{half}."): w for name, w in weights.items() if name.startswith(half)}

    def conv(self, x: Tensor, name: object, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def memory(self, x: Tensor, position: int) -> Tensor:
        y = torch.cat((x, torch.cat((torch.zeros_like(x[:1]), x[:-1]))), dim=1)
        for i in (0, 2):
            y = self.conv(y, f"{position}.conv.{i}").relu()
        return (self.conv(y, f"{position}.conv.4") + x).relu()

    def decode(self, latents: Tensor) -> Tensor:
        x = self.conv(torch.tanh(latents / 3) * 3, 1).relu()
        for position in (3, 9, 15):
            for i in range(3):
                x = self.memory(x, position + i)
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            frames = self.conv(x, f"{position + 4}.conv")
            x = frames.reshape(-1, *x.shape[1:])
            x = self.conv(x, position + 5)
        return self.conv(x.relu(), 22)[3:]

    def encode(self, pictures: Tensor) -> Tensor:
        x = self.conv(torch.cat((*[pictures[:1]] * 3, pictures)), 0).relu()
        for position, stride in ((2, 2), (7, 2), (12, 1)):
            groups = x.reshape(-1, stride * x.shape[1], *x.shape[2:])
            x = self.conv(self.conv(groups, f"{position}.conv"), position + 1, stride=2)
            for i in range(3):
                x = self.memory(x, position + 2 + i)
        return self.conv(x, 17)


def test_decoding_agrees_with_a_plain_computation(taehv: TAEHV) -> None:
    plain = Plain(taehv.state_dict(), "decoder")
    raw = torch.stack([plain.decode(clip) for clip in LATENTS])
    assert_equal(taehv.decode_raw(LATENTS, taehv.start_decoding()).output, raw)
    assert_equal(decode(taehv, (LATENTS,)), raw.clamp(0, 1))


def test_encoding_agrees_with_a_plain_computation(taehv: TAEHV) -> None:
    plain = Plain(taehv.state_dict(), "encoder")
    assert_equal(encode(taehv, (PICTURES,)), torch.stack([plain.encode(clip) for clip in PICTURES]))


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1), (2, 1, 3), (3, 3), (1, 5)], ids=str)
def test_any_split_of_the_latents_decodes_the_same(taehv: TAEHV, split: tuple[int, ...]) -> None:
    assert_equal(decode(taehv, LATENTS.split(split, dim=1)), decode(taehv, (LATENTS,)))


@pytest.mark.parametrize("split", [(1, 4, 4, 4), (1, 12), (5, 8), (9, 4)], ids=str)
def test_any_split_of_the_pictures_encodes_the_same(taehv: TAEHV, split: tuple[int, ...]) -> None:
    assert_equal(encode(taehv, PICTURES.split(split, dim=1)), encode(taehv, (PICTURES,)))


@pytest.mark.parametrize("picture", [0, 1, 4, 5, 12])
def test_a_picture_is_first_seen_in_the_latent_that_decodes_to_it(taehv: TAEHV, picture: int) -> None:
    changed = PICTURES.clone()
    changed[:, picture] += 1.0
    seen = (encode(taehv, (changed,)) != encode(taehv, (PICTURES,))).any(dim=4).any(dim=3).any(dim=2).any(dim=0)
    assert seen.int().argmax() == (picture + 3) // 4


def test_decoded_pictures_are_fp32_between_0_and_1() -> None:
    pictures = decode(random_taehv().bfloat16(), (LATENTS.bfloat16() * 9,))
    assert pictures.dtype == torch.float32
    assert (pictures.min().item(), pictures.max().item()) == (0.0, 1.0)


def test_a_stream_of_pictures_starts_with_one_and_goes_on_in_fours(taehv: TAEHV) -> None:
    with pytest.raises(StreamError, match=r"4 pictures at the start .* 1 \+ 4k"):
        taehv.encode(PICTURES[:, :4], taehv.start_encoding())
    cache = taehv.encode(PICTURES[:, :1], taehv.start_encoding()).cache
    with pytest.raises(StreamError, match=r"5 more pictures .* 4k"):
        taehv.encode(PICTURES[:, :5], cache)


def test_latents_with_other_channels_are_refused(taehv: TAEHV) -> None:
    with pytest.raises(ValueError, match=r"are not \[batch, frames, 3, height, width\]"):
        taehv.decode(torch.zeros(1, 1, 4, 2, 2), taehv.start_decoding())


def test_a_stream_cannot_change_its_size(taehv: TAEHV) -> None:
    cache = taehv.decode(LATENTS, taehv.start_decoding()).cache
    with pytest.raises(StreamError, match="layer 0 remembers"):
        taehv.decode(LATENTS[..., :2], cache)


def test_a_failed_call_leaves_the_old_history_usable() -> None:
    taehv = random_taehv()
    cache = taehv.decode(LATENTS[:, :3], taehv.start_decoding()).cache
    expected = taehv.decode(LATENTS[:, 3:], cache).frames

    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("out of memory")

    with taehv.decoder.get_submodule("22").register_forward_pre_hook(fail), pytest.raises(RuntimeError):
        taehv.decode(LATENTS[:, 3:], cache)
    assert torch.equal(taehv.decode(LATENTS[:, 3:], cache).frames, expected)


def test_two_streams_do_not_touch(taehv: TAEHV) -> None:
    mine, theirs = LATENTS[:1].split(2, dim=1), LATENTS[1:].split(2, dim=1)
    one, other, pictures = taehv.start_decoding(), taehv.start_decoding(), []
    for my_piece, their_piece in zip(mine, theirs, strict=True):
        frames, one = taehv.decode(my_piece, one)
        _, other = taehv.decode(their_piece, other)
        pictures.append(frames)
    assert torch.equal(torch.cat(pictures, dim=1), decode(taehv, mine))


def test_the_decoder_memory_is_the_least_that_suffices() -> None:
    taehv = random_taehv().double()
    memory = taehv.decoder_receptive_field
    latents = torch.randn(1, memory + 4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    past, following = latents.split((memory + 3, 1), dim=1)

    def after(frames: int) -> Tensor:
        cache = taehv.decode(past[:, -frames:], taehv.start_decoding()).cache
        return taehv.decode_raw(following, cache).output

    truth = after(memory + 3)
    assert memory == 8
    assert (after(memory) - truth).abs().max() < 1e-12
    assert (after(memory - 1) - truth).abs().max() > 1e-9


def test_the_real_names_are_the_checkpoint_s_positions() -> None:
    with torch.device("meta"):
        names = TAEHV(TAEHVConfig()).state_dict().keys()
    positions = {half: sorted({int(name.split(".")[1]) for name in names if name.startswith(half)}) for half in
                 ("encoder", "decoder")}  # fmt: skip
    assert positions["encoder"] == [0, *range(2, 18)]
    assert positions["decoder"] == [1, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 19, 20, 22]
    assert {f"decoder.{i}.bias" for i in (8, 14, 20)}.isdisjoint(names)


def test_the_last_output_channels_of_a_larger_time_grow_count(taehv: TAEHV) -> None:
    larger = taehv.state_dict()
    larger["decoder.7.conv.weight"] = torch.cat((torch.full((10, 10, 1, 1), 9.0), larger["decoder.7.conv.weight"]))
    fitted = random_taehv()
    fitted.load_state_dict(fit_time_grow(larger, TINY))
    assert torch.equal(decode(fitted, (LATENTS,)), decode(taehv, (LATENTS,)))


@pytest.fixture(params=[2, 4, 8], ids="patch {}".format)
def folded(request: pytest.FixtureRequest) -> TAEHV:
    """Autoencoders that fold patches of pixels into their channels."""
    torch.manual_seed(4)
    return TAEHV(replace(TINY, patch=request.param)).requires_grad_(False)


def test_folded_pictures_make_the_same_latents_in_any_split(folded: TAEHV) -> None:
    whole = encode(folded, (PICTURES,))
    assert whole.shape == (2, 4, 3, 2, 3)
    assert_equal(encode(folded, PICTURES.split((1, 8, 4), dim=1)), whole)


def test_folded_latents_make_the_same_pictures_in_any_split(folded: TAEHV) -> None:
    whole = decode(folded, (LATENTS,))
    assert whole.shape == (2, 21, 3, 16, 24)
    assert_equal(decode(folded, LATENTS.split((1, 3, 2), dim=1)), whole)


def test_a_folded_position_is_a_patch_of_neighbouring_pixels() -> None:
    """With all layers behind the folding at rest, one picture element of a patch moves one channel."""
    torch.manual_seed(5)
    network = TAEHV(replace(TINY, patch=8)).requires_grad_(False)
    last = [*network.decoder.children()][-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    last.weight.zero_()
    last.bias.copy_(torch.arange(192) / 192)
    picture = decode(network, (LATENTS[:, :1],))[0, 0]
    assert_equal(picture[1, :8, :8].flatten() * 192, torch.arange(64, 128).float())


def test_an_odd_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch is 3"):
        replace(TINY, patch=3)  # type: ignore[arg-type]

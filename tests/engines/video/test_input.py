from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.device.side_stream import SideStream, record_event
from engines.errors import ConfigError, StreamError
from engines.sampling.motion_noise import NoiseSetting
from engines.video import input as input_encoder
from engines.video.input import BlockInput, InputEncoder, under_noise
from tests.support.fake_cuda import Stuck, install

STILL = torch.full((1, 16, 32, 3), 90, dtype=torch.uint8)


def moving(frames: int) -> Tensor:
    return torch.randint(0, 256, (frames, 16, 32, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def encoded(encoder: InputEncoder, config: VideoStreamConfig, *calls: Tensor) -> list[BlockInput]:
    state, inputs = encoder.start(config), []
    for pictures in calls:
        made, state = encoder.encode(config, pictures, state)
        inputs += made
    return inputs


def test_five_pictures_are_the_first_block_and_four_are_a_later_one(
    encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    inputs = encoded(encoder, clip, moving(5), moving(4), moving(8))
    assert [(block.number, block.latents.shape[0]) for block in inputs] == [(0, 2), (1, 1), (2, 1), (3, 1)]


def test_how_pictures_are_handed_over_changes_their_latents_by_rounding_alone(
    encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    together = encoded(encoder, clip, moving(5), moving(8))
    apart = encoded(encoder, clip, moving(5), moving(8)[:4], moving(8)[4:])
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours.latents, theirs.latents, atol=1e-5, rtol=0)


def test_a_picture_at_rest_is_mixed_with_the_highest_noise(encoder: InputEncoder, clip: VideoStreamConfig) -> None:
    inputs = encoded(encoder, clip, STILL.repeat(5, 1, 1, 1), *[STILL.repeat(4, 1, 1, 1)] * 20)
    assert (inputs[0].noise_scale, inputs[0].timestep) == (0.8, 700)
    assert inputs[-1].noise_scale == pytest.approx(0.8)


def test_the_more_moves_the_less_noise_in_steps_that_are_damped(
    encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    inputs = encoded(encoder, clip, STILL.repeat(5, 1, 1, 1), moving(4), moving(4))
    assert [block.noise_scale for block in inputs[1:]] == pytest.approx([0.71, 0.701])
    assert [block.timestep for block in inputs[1:]] == [610, 601]


def test_without_the_controller_the_noise_stays(encoder: InputEncoder, clip: VideoStreamConfig) -> None:
    inputs = encoded(encoder, replace(clip, motion_noise=False), STILL.repeat(5, 1, 1, 1), moving(4))
    assert (inputs[1].noise_scale, inputs[1].timestep) == (0.8, 700)


def test_the_noise_can_be_set_between_two_calls(encoder: InputEncoder, clip: VideoStreamConfig) -> None:
    _, state = encoder.encode(clip, moving(5), encoder.start(clip))
    still = replace(state, noise=NoiseSetting(0.5, follows_motion=False))
    (less,), state = encoder.encode(clip, moving(4), still)
    assert (less.noise_scale, less.timestep) == (0.5, 400)
    (more,), _ = encoder.encode(clip, moving(4), replace(state, noise=NoiseSetting(0.8)))
    assert more.noise_scale == pytest.approx(0.7 * 0.9 + 0.05)
    with pytest.raises(ConfigError, match=r"noise_scale 1.5 is outside 0..1"):
        NoiseSetting(1.5)


def test_pictures_wait_for_no_block(
    encoder: InputEncoder, clip: VideoStreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, device = install(monkeypatch), torch.device("cuda:0")
    monkeypatch.setattr(input_encoder, "to_device", lambda pictures, _: pictures)
    monkeypatch.setattr(encoder, "_side_stream", SideStream(device))
    monkeypatch.setattr(encoder, "_loaded", record_event(device))
    cuda.main.launch()
    state = encoder.encode(clip, moving(5), encoder.start(clip)).after
    encoder.encode(clip, moving(4), state)
    encoder.resume(clip, moving(5), 2)
    with pytest.raises(Stuck):
        encoder.wait_for_caller()


def test_pictures_that_are_no_whole_blocks_are_refused(encoder: InputEncoder, clip: VideoStreamConfig) -> None:
    with pytest.raises(StreamError, match="3 more pictures"):
        encoded(encoder, clip, moving(5), moving(3))
    with pytest.raises(StreamError, match="4 pictures at the start"):
        encoded(encoder, clip, moving(4))
    with pytest.raises(ValueError, match=r"not uint8 \[frames, 16, 32, 3\]"):
        encoded(encoder, clip, moving(5)[:, :8])


def test_pictures_that_open_a_stream_anew_are_encoded_behind_the_first_of_them(
    encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    pictures, setting = moving(8), NoiseSetting(0.6)
    start = encoder.encode(clip, torch.cat([pictures[:1], pictures]), encoder.start(clip, noise=setting)).inputs
    anew = encoder.encode(clip, pictures, encoder.start(clip, 7, setting))
    assert [block.number for block in anew.inputs] == [7, 8]
    assert anew.after.blocks == 9
    for ours, theirs in zip(anew.inputs, start, strict=True):
        assert torch.equal(ours.latents, theirs.latents)
        assert (ours.noise_scale, ours.timestep) == (theirs.noise_scale, theirs.timestep)


@pytest.mark.parametrize("followed", [True, False])
def test_noise_that_is_set_behind_a_call_is_as_if_it_had_been_set_before(
    followed: bool, encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    setting, clip = NoiseSetting(0.6, follows_motion=True), replace(clip, motion_noise=followed)
    first = encoder.encode(clip, moving(5), encoder.start(clip)).after
    before = encoder.encode(clip, moving(4), replace(first, noise=setting))
    behind = encoder.encode(clip, moving(4), first)
    after = behind.after.under(setting)
    block = under_noise(behind.inputs[0], clip, after)
    assert (block.noise_scale, block.timestep) == (before.inputs[0].noise_scale, before.inputs[0].timestep)
    following = [encoder.encode(clip, moving(4), state).inputs[0] for state in (before.after, after)]
    assert following[0].noise_scale == following[1].noise_scale != behind.inputs[0].noise_scale


def test_a_stream_that_is_resumed_is_near_what_it_was_the_more_of_its_pictures_are_kept(
    encoder: InputEncoder, clip: VideoStreamConfig
) -> None:
    pictures, state = moving(5 + 4 * 8), encoder.start(clip)
    for at in (0, *range(5, 33, 4)):
        state = encoder.encode(clip, pictures[at : at + (4 if at else 5)], state).after
    whole = encoder.encode(clip, pictures[-4:], state).inputs[0]
    off = []
    for kept in (1, 9, 25):
        resumed = encoder.resume(clip, pictures[-4 - kept : -4], state.blocks)
        made = encoder.encode(clip, pictures[-4:], resumed).inputs[0]
        assert made.number == whole.number
        off.append((made.latents - whole.latents).abs().mean().item())
    assert off[0] > off[1] > off[2]

from __future__ import annotations

import pytest
import torch

from kernels.vae.upsample import upsample, upsample_reference
from tests.kernels.vae.frames import pictures, values


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1, 1), (2, 30, 2, 3, 7), (1, 96, 1, 5, 9)], ids=str)
def test_pictures_double_and_frames_leave_the_channels(
    shape: tuple[int, ...], frames: int, device: torch.device
) -> None:
    x = pictures(*shape, seed=1, device=device)
    bias = values(shape[1], seed=3, like=x)
    assert torch.equal(upsample(x, bias, frames), upsample_reference(x, bias, frames))
    assert torch.equal(upsample(x, None, frames), upsample_reference(x, None, frames))


def test_frames_on_the_channels_follow_each_other_in_time(device: torch.device) -> None:
    x = pictures(1, 8, 3, 2, 2, seed=1, device=device)
    large = upsample(x, None, 2)
    assert large.shape == (1, 4, 6, 4, 4)
    assert torch.equal(large[:, :, 3, ::2, 1::2], x[:, 4:, 1])


def test_every_other_frame_of_a_longer_tensor_can_double(device: torch.device) -> None:
    longer = pictures(2, 6, 4, 2, 3, seed=1, device=device)
    assert torch.equal(upsample(longer[:, :, 1::2], None, 1), upsample_reference(longer[:, :, 1::2], None, 1))


def test_channels_that_hold_no_whole_frames_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="5 channels do not hold 2 frames"):
        upsample(pictures(1, 5, 1, 2, 2, seed=1, device=device), None, 2)


def test_a_bias_for_other_channels_is_refused(device: torch.device) -> None:
    x = pictures(1, 6, 1, 2, 2, seed=1, device=device)
    with pytest.raises(ValueError, match=r"bias is \[3\] .*; expected \[6\]"):
        upsample(x, values(3, seed=3, like=x), 2)

from __future__ import annotations

import pytest
import torch

from kernels.vae.conv_epilogue import conv_epilogue, conv_epilogue_reference
from tests.kernels.vae.frames import pictures, values
from tests.tolerances import assert_within


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("beside", "relu"), [(False, False), (False, True), (True, False), (True, True)])
def test_bias_shortcut_and_relu_are_written_over_the_output(
    beside: bool, relu: bool, dtype: torch.dtype, device: torch.device
) -> None:
    y, other = (pictures(2, 5, 3, 3, 7, seed=seed, device=device, dtype=dtype) for seed in (1, 2))
    bias, shortcut = values(5, seed=3, like=y), other if beside else None
    wanted = y.float()
    conv_epilogue_reference(wanted, bias.float(), other.float() if beside else None, relu)
    conv_epilogue(y, bias, shortcut, relu)
    assert_within("conv_epilogue", y, wanted)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 96, 2, 5, 9), (3, 3, 1, 40, 70)], ids=str)
def test_every_pixel_has_its_channels_biases(shape: tuple[int, ...], device: torch.device) -> None:
    y = torch.zeros_like(pictures(*shape, seed=1, device=device))
    bias = values(shape[1], seed=3, like=y)
    conv_epilogue(y, bias, None, False)
    assert torch.equal(y, bias.view(-1, 1, 1, 1).expand_as(y))


def test_what_is_no_number_stays_none(device: torch.device) -> None:
    y = torch.full_like(pictures(1, 2, 1, 1, 1, seed=1, device=device), torch.nan)
    conv_epilogue(y, torch.zeros(2, device=device), None, True)
    assert y.isnan().all()


def test_a_shortcut_of_another_shape_is_refused(device: torch.device) -> None:
    y, shortcut = pictures(1, 5, 2, 2, 3, seed=1, device=device), pictures(1, 5, 1, 2, 3, seed=2, device=device)
    with pytest.raises(ValueError, match=r"shortcut is \[1, 5, 1, 2, 3\] .*; expected \[1, 5, 2, 2, 3\]"):
        conv_epilogue(y, values(5, seed=3, like=y), shortcut, False)


def test_a_shortcut_that_is_the_output_is_refused(device: torch.device) -> None:
    y = pictures(1, 5, 2, 2, 3, seed=1, device=device)
    with pytest.raises(ValueError, match="the shortcut is y itself"):
        conv_epilogue(y, values(5, seed=3, like=y), y, False)


def test_frames_of_a_longer_tensor_are_refused(device: torch.device) -> None:
    y = pictures(2, 5, 3, 2, 3, seed=1, device=device)[:, :, 1:]
    with pytest.raises(ValueError, match=r"conv_epilogue: y .* has gaps between its frames"):
        conv_epilogue(y, values(5, seed=3, like=y), None, False)

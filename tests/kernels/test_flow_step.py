from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.sampling.flow_schedule import FlowSchedule, add_noise, predict_clean
from kernels.flow_step import flow_step, flow_step_reference
from tests.tolerances import assert_within

SCHEDULE = FlowSchedule((1000, 750, 500, 250), 5.0)


def latents(batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their flow, and fresh noise: pictures of 5 x 7 latents, which no tile divides."""
    generator = torch.Generator().manual_seed(5)
    noisy, flow, noise = torch.randn(3, batch, 2, 16, 5, 7, generator=generator).to(device, dtype)
    return noisy, flow, noise


def sigmas(*steps: int, device: torch.device) -> Tensor:
    return torch.tensor(
        [[*(level.sigma for level in SCHEDULE.levels), 0.0][step] for step in steps], device=device
    )


@pytest.mark.parametrize("step", range(3))
def test_the_reference_is_the_schedules_two_operations(step: int) -> None:
    noisy, flow, noise = latents(1, torch.device("cpu"))
    now, then = sigmas(step, device=noisy.device), sigmas(step + 1, device=noisy.device)
    level = SCHEDULE.levels[step]
    expected = add_noise(predict_clean(noisy, flow, level.sigma), noise, level.next_sigma)
    assert torch.equal(flow_step_reference(noisy, flow, noise, now, then), expected)


# Not bf16: the interpreter casts to it by truncation, and there are two casts.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_streams_at_different_steps_share_a_launch(dtype: torch.dtype, device: torch.device) -> None:
    noisy, flow, noise = latents(3, device, dtype)
    now, then = sigmas(0, 2, 3, device=device), sigmas(1, 3, 4, device=device)
    expected = flow_step_reference(noisy, flow, noise, now, then)
    assert_within("flow_step", flow_step(noisy, flow, noise, now, then), expected)


def test_the_last_step_gives_the_clean_latents(device: torch.device) -> None:
    noisy, flow, noise = latents(1, device)
    made = flow_step(noisy, flow, noise, sigmas(3, device=device), sigmas(4, device=device))
    assert torch.equal(made, predict_clean(noisy, flow, SCHEDULE.levels[3].sigma))


def test_noise_of_another_dtype_is_refused(device: torch.device) -> None:
    noisy, flow, noise = latents(1, device, torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"noise must be contiguous .* of torch\.bfloat16 .* got .* of torch\.float32"
    ):
        flow_step(noisy, flow, noise.float(), sigmas(0, device=device), sigmas(1, device=device))


def test_a_level_for_too_few_streams_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"next_sigma must be fp32 \[2\]"):
        flow_step(*latents(2, device), sigmas(0, 1, device=device), sigmas(1, device=device))

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.wan.layer_ops import EAGER_OPS
from kernels.gated_residual import gated_residual, gated_residual_reference
from tests.tolerances import assert_within


def branch(batch: int, frames: int, tokens: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, what is added to them, and the gate as a view into a table of six modulations."""
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(2, batch, frames, tokens, dim, generator=generator).to(device)
    gate = torch.randn(batch, frames, 6, dim, generator=generator).to(device).unsqueeze(2).unbind(3)[2]
    return x, y, gate


def test_the_reference_is_how_the_transformer_adds_a_branch() -> None:
    x, y, gate = branch(2, 3, 5, 96, torch.device("cpu"))
    made = torch.nn.Linear(96, 96)
    with torch.no_grad():
        assert torch.equal(gated_residual_reference(x, made(y), gate), EAGER_OPS.project_onto(x, made, y, gate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 96), (2, 3, 9, 77), (1, 2, 17, 129)], ids=str)
def test_a_branch_is_added_through_its_frames_gate(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    x, y, gate = (t.to(dtype) for t in branch(*shape, device))
    assert_within(
        "gated_residual", gated_residual(x, y, gate), gated_residual_reference(x.float(), y.float(), gate.float())
    )


def test_one_gate_may_serve_all_streams(device: torch.device) -> None:
    x, y, gate = branch(2, 2, 3, 96, device)
    gate = gate[:1].expand_as(gate)
    assert_within("gated_residual", gated_residual(x, y, gate), gated_residual_reference(x, y, gate))


def test_a_branch_of_another_shape_is_refused(device: torch.device) -> None:
    x, y, gate = branch(1, 2, 3, 96, device)
    with pytest.raises(ValueError, match=r"gated_residual: y is \[1, 2, 2, 96\] .* beside \[1, 2, 3, 96\]"):
        gated_residual(x, y[:, :, :2].contiguous(), gate)


def test_a_gate_with_scattered_channels_is_refused(device: torch.device) -> None:
    x, y, gate = branch(1, 2, 3, 96, device)
    scattered = torch.stack([gate, gate], dim=-1)[..., 0]
    with pytest.raises(ValueError, match=r"gate must be \[1, 2, 1, 96\] with neighboring channels"):
        gated_residual(x, y, scattered)


def test_doubles_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"gated_residual: x is torch\.float64; it takes"):
        gated_residual(*(t.double() for t in branch(1, 1, 1, 8, device)))

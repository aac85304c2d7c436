"""Weights rounded column by column, each column making up for the errors of those before it (GPTQ, Frantar et al.
2022, section 3): the layer's outputs lose less than if every weight went to the nearest step.

For inputs x with second moments H = sum of x x^T, the loss of a row w of the weights is (w - q) H (w - q)^T. With
the columns rounded one after the other, what the rest should change by follows from the upper Cholesky factor of
the inverse of H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.001
"""Of the mean of the moments' diagonal, added to all of it: channels that are nearly combinations of others would
be made up for without bound."""

COLUMNS = 128
"""Rounded before their errors are handed on to all the others at once."""


def round_compensated(weight: Tensor, moments: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """The steps that stand for `weight`.

    Args:
        weight: [outputs, inputs] in units of each row's step.
        moments: [inputs, inputs] second moments of the inputs.
        nearest: rounds values to steps.

    Returns:
        Steps of the shape of `weight`, fp64.

    """
    rest, steps = weight.double(), torch.empty_like(weight, dtype=torch.float64)
    factor = _inverse_factor(moments.double())
    for start in range(0, weight.shape[1], COLUMNS):
        end = min(start + COLUMNS, weight.shape[1])
        errors = torch.empty_like(rest[:, start:end])
        block, within = rest[:, start:end].clone(), factor[start:end, start:end]
        for column in range(end - start):
            steps[:, start + column] = nearest(block[:, column])
            errors[:, column] = (block[:, column] - steps[:, start + column]) / within[column, column]
            block[:, column:] -= errors[:, column, None] * within[column, None, column:]
        rest[:, end:] -= errors @ factor[start:end, end:]
    return steps


def _inverse_factor(moments: Tensor) -> Tensor:
    """U, upper triangular, with U^T U the inverse of the damped moments."""
    damping = DAMPING * moments.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    damped = moments + damping * torch.eye(len(moments), dtype=torch.float64, device=moments.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)

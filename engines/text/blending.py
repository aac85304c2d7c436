"""Prompts between prompts: weighted blends, and the way from one prompt to another.

Embeddings of different lengths meet as the model reads them: the shorter one goes on with rows of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from engines.errors import PromptError
from engines.text.prompt import Prompt

PARALLEL_SINE = 1e-3
"""Between rows whose angle has a smaller sine, slerp is linear: it divides by that sine."""

MAX_TEXT_CHARACTERS = 20_000
"""The end of a mixture's text is kept: mixtures can be mixed again, and a live stream does so without end."""


def blend(prompts: Sequence[tuple[Prompt, float]]) -> Prompt:
    """One prompt from several, by weight; only the proportions of the weights matter.

    The weighted mean of the embeddings, scaled to the weighted mean of their norms: means of unlike embeddings
    are shorter than either, and the prompt would lose strength. Scope does the same. A prompt that is left with
    all of the weight is returned as it is.
    """
    for prompt, weight in prompts:
        if not (weight >= 0 and math.isfinite(weight)):
            raise PromptError(f"the weight {weight} of {prompt.text[:60]!r} is not a finite number of at least 0")
    heaviest = max((weight for _, weight in prompts), default=0.0)
    if heaviest == 0:
        raise PromptError(f"of {len(prompts)} blended prompts none has a positive weight")
    weighted = [(prompt, weight / heaviest) for prompt, weight in prompts if weight / heaviest > 0]
    if len(weighted) == 1:
        return weighted[0][0]
    total = math.fsum(weight for _, weight in weighted)
    shares = [weight / total for _, weight in weighted]
    rows = torch.stack(_padded([prompt for prompt, _ in weighted]))
    share = rows.new_tensor(shares)[:, None, None]
    mean, norm = (rows * share).sum(0), (rows.norm(dim=(1, 2), keepdim=True) * share).sum()
    # Opposite embeddings leave nothing but rounding, which is not to be scaled up.
    present = mean.norm()
    scale = torch.where(present > 1e-6 * norm, norm / present, 1.0)
    return _mixture([prompt for prompt, _ in weighted], shares, mean * scale)


def interpolate(a: Prompt, b: Prompt, fraction: float, method: Literal["linear", "slerp"] = "linear") -> Prompt:
    """The prompt at `fraction` of the way from `a` (0, returned as it is) to `b` (1, likewise).

    "linear" goes straight. "slerp" turns each token's row from the direction of `a` to that of `b` at an even
    pace, while its norm goes straight: no row shrinks on the way. Rows without an angle between them (one is
    zero, or they are parallel or opposite) go straight.
    """
    if not 0 <= fraction <= 1:
        raise PromptError(f"fraction {fraction} is outside 0..1")
    if method not in ("linear", "slerp"):
        raise PromptError(f"method {method!r} is neither 'linear' nor 'slerp'")
    if fraction in (0, 1):
        return b if fraction == 1 else a
    start, end = _padded([a, b])
    rows = torch.lerp(start, end, fraction) if method == "linear" else _slerp(start, end, fraction)
    return _mixture([a, b], [1 - fraction, fraction], rows)


def _slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    start_norm, end_norm = (rows.norm(dim=-1, keepdim=True) for rows in (start, end))
    tiny = torch.finfo(start.dtype).tiny
    from_direction, to_direction = start / start_norm.clamp(min=tiny), end / end_norm.clamp(min=tiny)
    angle = torch.acos((from_direction * to_direction).sum(-1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    turned = (from_direction * ((1 - fraction) * angle).sin() + to_direction * (fraction * angle).sin()) / sine
    straight = (start_norm == 0) | (end_norm == 0) | (sine < PARALLEL_SINE)
    return torch.where(
        straight, torch.lerp(start, end, fraction), turned * torch.lerp(start_norm, end_norm, fraction)
    )


def _padded(prompts: Sequence[Prompt]) -> list[Tensor]:
    """The rows of each in fp32, all of the same length."""
    first = prompts[0].rows
    for prompt in prompts:
        if prompt.rows.shape[1] != first.shape[1] or prompt.rows.dtype != first.dtype:
            raise PromptError(
                f"rows of {first.shape[1]} channels in {first.dtype} do not mix with rows of "
                f"{prompt.rows.shape[1]} in {prompt.rows.dtype}"
            )
    length = max(prompt.rows.shape[0] for prompt in prompts)
    return [
        torch.nn.functional.pad(prompt.rows.float(), (0, 0, 0, length - prompt.rows.shape[0]))
        for prompt in prompts
    ]


def _mixture(prompts: Sequence[Prompt], shares: Sequence[float], rows: Tensor) -> Prompt:
    text = " + ".join(f"{prompt.text} ({share:.3g})" for prompt, share in zip(prompts, shares, strict=True))
    return Prompt(text[-MAX_TEXT_CHARACTERS:], rows.to(prompts[0].rows.dtype))

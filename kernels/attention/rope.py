"""Rotary position embedding over three axes: frame, row and column of a token (Su et al. 2021; Wan2.1).

A head of D channels is D/2 pairs of neighbouring channels (2i, 2i+1). A third of the pairs, rounded down, turns
with the row, as many with the column, the rest, which come first, with the frame; pair j of an axis with n pairs
turns by position x 10000^(-j/n).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0


def apply_rope(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate the channel pairs of `x`.

    Args:
        x: [..., tokens, heads, D], any floating dtype; rotated in fp32 and returned in its own dtype.
        freqs_cis: [..., tokens, D/2] complex64, of modulus one.

    """
    if x.shape[-1] != 2 * freqs_cis.shape[-1] or x.shape[-3] != freqs_cis.shape[-2]:
        raise ValueError(
            f"x {list(x.shape)} needs freqs_cis for {x.shape[-3]} tokens and {x.shape[-1] // 2} pairs; "
            f"got {list(freqs_cis.shape)}"
        )
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs_cis.unsqueeze(-2)).flatten(-2).to(x.dtype)


def frame_pairs(head_dim: int) -> int:
    """Channel pairs of a head that turn with the frame; they are its first."""
    return head_dim // 2 - 2 * (head_dim // 6)


def frame_freqs(positions: Sequence[int], head_dim: int) -> Tensor:
    """What turns a head's first pairs at frame `positions`: complex64 [positions, frame pairs], on the CPU.

    Angles are taken in fp64 from exact integers: a position in the hundreds of millions loses nothing.
    """
    return _freqs(positions, frame_pairs(head_dim))


def spatial_freqs(rows: int, columns: int, head_dim: int) -> Tensor:
    """What turns the other pairs of a frame's tokens: complex64 [rows * columns, D/2 - frame pairs]."""
    pairs = head_dim // 6
    down = _freqs(range(rows), pairs)[:, None].expand(rows, columns, pairs)
    across = _freqs(range(columns), pairs)[None].expand(rows, columns, pairs)
    return torch.cat([down, across], dim=-1).flatten(0, 1)


def join_freqs(frame: Tensor, spatial: Tensor) -> Tensor:
    """Of all tokens: [..., frames, P] and [tokens of a frame, S] to [..., frames * tokens of a frame, P + S]."""
    tokens, leading = spatial.shape[0], frame.shape[:-1]
    over_tokens = frame.unsqueeze(-2).expand(*leading, tokens, -1)
    return torch.cat([over_tokens, spatial.expand(*leading, -1, -1)], dim=-1).flatten(-3, -2)


def _freqs(positions: Sequence[int], pairs: int) -> Tensor:
    frequency = THETA ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

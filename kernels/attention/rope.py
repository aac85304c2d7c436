"""Rotary position embedding over three axes: frame, row and column of a token (Su et al. 2021; Wan2.1).

A head of D channels is D/2 pairs of neighboring channels (2i, 2i+1). A third of the pairs, rounded down, turns
with the row, as many with the column, the rest with the frame; pair j of an axis with n pairs turns by
position x 10000^(-j/n).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


def apply_rope(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn the channel pairs of `x`.

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


class Turns(NamedTuple):
    """RoPE turns of a pass, each [B, T, D / 2] complex64. `sink_queries` where they differ from `queries`."""

    keys: Tensor
    queries: Tensor
    sink_queries: Tensor | None


class RopeTable:
    """The freqs_cis of a picture of `rows` x `columns` tokens at any frame, for heads of `head_dim` channels.

    Angles are taken in fp64, so that a frame number in the millions loses nothing.
    """

    def __init__(self, rows: int, columns: int, head_dim: int, device: torch.device) -> None:
        self._device = device
        spatial = head_dim // 6
        self._frame_pairs = head_dim // 2 - 2 * spatial
        down = _freqs_cis(range(rows), spatial)[:, None].expand(rows, columns, spatial)
        across = _freqs_cis(range(columns), spatial)[None].expand(rows, columns, spatial)
        self._spatial = torch.cat([down, across], dim=-1).flatten(0, 1).to(device)

    def freqs_cis(self, frames: Sequence[int]) -> Tensor:
        """Of all tokens of `frames`: [len(frames) * rows * columns, head_dim / 2] complex64."""
        frame = _freqs_cis(frames, self._frame_pairs)
        if self._device.type == "cuda":
            frame = frame.pin_memory()  # Else the host would wait for the copy, and all work before it.
        frame = frame.to(self._device, non_blocking=True)
        tokens = self._spatial.shape[0]
        return torch.cat(
            [
                frame[:, None].expand(-1, tokens, -1),
                self._spatial.expand(len(frames), -1, -1),
            ],
            dim=-1,
        ).flatten(0, 1)


def _freqs_cis(positions: Sequence[int], pairs: int) -> Tensor:
    """Complex64 [positions, pairs], on the CPU."""
    frequency = THETA ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

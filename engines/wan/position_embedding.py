"""Learned positions, for a transformer that has any."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class PositionEmbedding(nn.Module):
    """Learned vectors for a token's frame in its block and its place in the picture.

    With RoPE alone attention gives every token the same where all values are alike, as those of noise are on
    average.
    """

    def __init__(self, grid: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        frames, rows, columns = grid
        self.frame = nn.Parameter(torch.zeros(frames, 1, dim))
        self.space = nn.Parameter(torch.zeros(rows, columns, dim))

    @override
    def forward(self, frames: int, rows: int, columns: int) -> Tensor:
        """[frames, rows * columns, dim] of whole blocks; pictures of another size share what there is."""
        space: Tensor = self.space
        if space.shape[:2] != (rows, columns):
            image = F.interpolate(space.movedim(2, 0).unsqueeze(0), (rows, columns), mode="bilinear")
            space = image[0].movedim(0, 2)
        repeats = -(-frames // len(self.frame))
        return self.frame.repeat(repeats, 1, 1)[:frames] + space.flatten(0, 1)

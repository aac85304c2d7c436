"""The interface between tokens and the rows of a prompt, met by UMT5's encoder and by graphs of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from engines.config.networks import TextEncoderConfig


class TokenEncoder(Protocol):
    """Embeds the tokens of prompts."""

    @property
    def config(self) -> TextEncoderConfig:
        """Its sizes."""

    @property
    def device(self) -> torch.device:
        """Where ids have to be."""

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids [B, L] int64 and mask [B, L], zero where padding, to rows [B, L, dim]. No token sees padding."""

"""The operations around the convolutions of a video autoencoder, as one set to choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VAEOps:
    """The operations around an autoencoder's convolutions, each in one pass over memory.

    Each field is an op of the file of its name in this folder: the Triton one, or its reference.
    """

    causal_pad: Callable[[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None], Tensor]
    frame_pairs: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    conv_epilogue: Callable[[Tensor, Tensor, Tensor | None, bool], None]

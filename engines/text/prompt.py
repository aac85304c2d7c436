"""A prompt as a denoiser takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from engines.errors import PromptError


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text and its embedding; compared by identity, so that it can be the key of what is derived from it.

    `rows` [tokens, text_dim] are the embeddings of the real tokens. The rows up to the model's text_len are
    implied and zero; nobody writes into the tensor. `cut_tokens` at the end of the text were too many, and are
    not read. Raises PromptError unless there is a row of floats.
    """

    text: str
    rows: Tensor
    cut_tokens: int = 0

    def __post_init__(self) -> None:
        shape = tuple(self.rows.shape)
        if self.rows.dim() != 2:
            raise PromptError(f"prompt rows have shape {shape}; they must be [tokens, text_dim]")
        if shape[0] == 0:
            raise PromptError(f"prompt rows have shape {shape}; at least one token is needed")
        if not self.rows.is_floating_point():
            raise PromptError(f"prompt rows are {self.rows.dtype}; they must be floating point")

    @classmethod
    def from_padded(cls, text: str, embedding: Tensor) -> Self:
        """Take an embedding [text_len, text_dim] without the zero rows at its end.

        Raises PromptError if it is not 2-D or is zero altogether. Reads the tensor back from its device.
        """
        shape = tuple(embedding.shape)
        if embedding.dim() != 2:
            raise PromptError(f"embedding has shape {shape}; it must be [text_len, text_dim]")
        real = embedding.any(dim=1).nonzero()
        if real.numel() == 0:
            raise PromptError(f"all {shape[0]} rows of the embedding are zero; one must not be")
        return cls(text, embedding[: int(real[-1]) + 1])

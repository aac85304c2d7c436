"""A prompt as a denoiser takes it, and the encoder that makes one from text."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from engines.errors import ConfigError, PromptError
from engines.wan.text_encoder import UMT5Encoder
from engines.wan.tokenizer import PromptTokenizer, clean_prompt


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text and its embedding; compared by identity, so that it can be the key of what is derived from it.

    `rows` [tokens, text_dim] are the embeddings of the real tokens. The rows up to the model's text_len are
    implied and zero; nobody writes into the tensor. Raises PromptError unless there is a row of floats.
    """

    text: str
    rows: Tensor

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


class PromptEncoder:
    """Text to prompt, remembering the `capacity` prompts used last. For one thread at a time."""

    def __init__(self, tokenizer: PromptTokenizer, encoder: UMT5Encoder, capacity: int) -> None:
        if tokenizer.vocab > encoder.config.vocab:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab} ids but the text encoder embeds {encoder.config.vocab}"
            )
        if capacity < 1:
            raise ConfigError(f"capacity is {capacity}; it must be at least 1")
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._capacity = capacity
        self._recent: OrderedDict[str, Prompt] = OrderedDict()

    def encode(self, text: str) -> Prompt:
        """The prompt of `text`, which is cleaned first; rows are on the encoder's device, in its dtype.

        Texts that are equal once cleaned give the same object while it is remembered. Raises PromptError if
        nothing is left after cleaning.
        """
        cleaned = clean_prompt(text)
        if not cleaned:
            raise PromptError(f"prompt {text!r} is empty; a prompt has at least one visible character")
        if cleaned not in self._recent:
            self._recent[cleaned] = Prompt(cleaned, self._embed(cleaned))
        self._recent.move_to_end(cleaned)
        if len(self._recent) > self._capacity:
            self._recent.popitem(last=False)
        return self._recent[cleaned]

    @torch.inference_mode()
    def _embed(self, text: str) -> Tensor:
        """Rows [tokens, text_dim]. Only the real length is computed: no token sees padding."""
        ids = torch.tensor([self._tokenizer.encode(text)], device=self._encoder.device)
        rows: Tensor = self._encoder(ids, torch.ones_like(ids))[0]
        return rows

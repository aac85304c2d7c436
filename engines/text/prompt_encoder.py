"""From text to prompt."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from engines.errors import ConfigError, PromptError
from engines.text.cleaning import clean_prompt
from engines.text.prompt import Prompt
from engines.text.tokenizer import PromptTokenizer
from engines.text.umt5 import UMT5Encoder


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

    def cut(self, text: str) -> int:
        """How many tokens at the end of `text`, once cleaned, the model will not read."""
        return self._tokenizer.cut(clean_prompt(text))

    @torch.inference_mode()
    def _embed(self, text: str) -> Tensor:
        """Rows [tokens, text_dim]. Only the real length is computed: no token sees padding."""
        ids = torch.tensor([self._tokenizer.encode(text)], device=self._encoder.device)
        rows: Tensor = self._encoder(ids, torch.ones_like(ids))[0]
        return rows

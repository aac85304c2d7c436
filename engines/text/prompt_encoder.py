"""From text to prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from engines.device.host_copy import HostCopier
from engines.device.memory_budget import typed_out_of_memory
from engines.device.side_stream import EQUAL, SideStream
from engines.errors import ConfigError, PromptError
from engines.text.cleaning import clean_prompt
from engines.text.prompt import Prompt
from engines.text.protocol import TokenEncoder
from engines.text.tokenizer import PromptTokenizer


class PromptEncoder:
    """Text to prompt, remembering the `capacity` prompts used last. For one thread at a time.

    On CUDA it has a queue of its own beside the passes, neither before nor behind them: a prompt waits for no
    block, and no block for a prompt. Raises ConfigError as `SideStream`. `observe` is told the seconds that the
    encoder took for a text.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        encoder: TokenEncoder,
        capacity: int,
        observe: Callable[[float], None] | None = None,
    ) -> None:
        if tokenizer.vocab > encoder.config.vocab:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab} ids but the text encoder embeds {encoder.config.vocab}"
            )
        if capacity < 1:
            raise ConfigError(f"capacity is {capacity}; it must be at least 1")
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._capacity = capacity
        self.observe = observe
        self._side = SideStream(encoder.device, EQUAL)
        self._copier = HostCopier(encoder.device)
        self._loaded = self._side.record_event()
        self._recent: OrderedDict[str, Prompt] = OrderedDict()

    def on(self, encoder: TokenEncoder) -> PromptEncoder:
        """The same by another encoder of the same model, with nothing remembered."""
        return PromptEncoder(self._tokenizer, encoder, self._capacity, self.observe)

    def encode(self, text: str) -> Prompt:
        """The prompt of `text`, which is cleaned first; rows are on the CPU, in the encoder's dtype.

        Texts that are equal once cleaned give the same object while it is remembered. Raises PromptError if
        nothing is left after cleaning, DeviceOutOfMemory if there is no memory left for it.
        """
        cleaned = clean_prompt(text)
        if not cleaned:
            raise PromptError(f"prompt {text!r} is empty; a prompt has at least one visible character")
        if cleaned not in self._recent:
            self._recent[cleaned] = Prompt(cleaned, self._embed(cleaned), self._tokenizer.cut(cleaned))
        self._recent.move_to_end(cleaned)
        if len(self._recent) > self._capacity:
            self._recent.popitem(last=False)
        return self._recent[cleaned]

    def warm_up(self) -> None:
        """Encode a short and a long text, in the thread that is to encode."""
        for text in ("warm-up", "warm-up " * self._encoder.config.text_len):
            self._embed(text)

    @torch.inference_mode()
    def _embed(self, text: str) -> Tensor:
        """Rows [tokens, text_dim]. Only the real length is computed: no token sees padding."""
        tokens = self._tokenizer.encode(text)

        def embed() -> Tensor:
            ids = torch.tensor([tokens], device=self._encoder.device)
            return self._encoder(ids, torch.ones_like(ids))[0]

        with typed_out_of_memory(f"a prompt of {len(tokens)} tokens"):
            begun = self._side.begin(embed, self._loaded)
            (rows,) = self._copier.begin([begun.value], begun.done).result()
        if self.observe is not None and (seconds := begun.lap.seconds) is not None:
            self.observe(seconds)
        return rows

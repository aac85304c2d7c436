"""Keys and values of prompts, as passes read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer


@dataclass(frozen=True)
class PromptKV:
    """Keys and values of one prompt in every layer: [layers, N, heads, channels].

    LongLive attends all `text_len` positions, and those behind the prompt's own tokens are all equal. Folded, they
    are one key, the last, and `last_log` is the logarithm of their number: also the last of `log_multiplicity`
    [N] fp32, which is None where nothing is folded.
    """

    keys: Tensor
    values: Tensor
    log_multiplicity: Tensor | None
    last_log: float = 0.0

    @classmethod
    def of(cls, transformer: CausalTransformer, prompt: Prompt, *, folded: bool = True) -> Self:
        """What `transformer` reads in `prompt`; `folded` if attention can weigh keys."""
        rows = prompt.rows
        padding = transformer.config.text_len - rows.shape[0]
        if padding == 0:
            return cls(*transformer.prompt_kv(rows), None)
        keys, values = transformer.prompt_kv(torch.cat([rows, rows.new_zeros(1, rows.shape[1])]))
        if not folded:
            return cls(_repeat_last(keys, padding), _repeat_last(values, padding), None)
        log_multiplicity = torch.zeros(rows.shape[0] + 1, device=keys.device)
        log_multiplicity[-1].fill_(math.log(padding))
        return cls(keys, values, log_multiplicity, math.log(padding))


def _repeat_last(x: Tensor, times: int) -> Tensor:
    """[layers, N, ...] with the last of the N there `times` times."""
    return torch.cat([x[:, :-1], x[:, -1:].expand(-1, times, -1, -1)], dim=1)

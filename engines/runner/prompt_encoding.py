"""From a prompt's embedding to keys and values in every layer's attention to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engines.cache.prompt_kv import EncodedPrompt
from engines.device.host_copy import to_device
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer


def encode_prompt(transformer: CausalTransformer, prompt: Prompt, *, folded: bool) -> EncodedPrompt:
    """What `transformer` reads in `prompt`; `folded` if attention can weigh keys."""
    rows = _here(transformer, prompt.rows)
    padding = transformer.config.text_len - rows.shape[0]
    if padding == 0:
        return EncodedPrompt(*transformer.prompt_kv(rows))
    keys, values = transformer.prompt_kv(torch.cat([rows, rows.new_zeros(1, rows.shape[1])]))
    if folded:
        return EncodedPrompt(keys, values, math.log(padding))
    return EncodedPrompt(_repeat_last(keys, padding), _repeat_last(values, padding))


def _here(transformer: CausalTransformer, rows: Tensor) -> Tensor:
    return to_device(rows.to(transformer.dtype), transformer.device)


def _repeat_last(x: Tensor, times: int) -> Tensor:
    """[layers, N, ...] with the last of the N there `times` times."""
    return torch.cat([x[:, :-1], x[:, -1:].expand(-1, times, -1, -1)], dim=1)

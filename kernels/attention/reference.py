"""Attention of one row's queries over a window or a prompt in PyTorch's own operators, without Triton.

    output = softmax(q k^T / sqrt(D) + log multiplicity) v

Key order does not matter to a softmax, so slots are read as they lie.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, last_log: float = 0.0) -> Tensor:
    """PyTorch's own attention of queries [T, heads, D] over keys and values [S, heads, D].

    `last_log` is the logarithm of the number of equal keys that the last one stands for; on CUDA, where libraries
    misread a bias in fp32 beside 16-bit queries, there may be none.
    """
    bias = None
    if last_log != 0.0:
        if q.is_cuda:
            raise ValueError(f"on CUDA no key may stand for exp({last_log}) equal ones; repeat it")
        bias = torch.zeros(k.shape[0], device=k.device)
        bias[-1] = last_log
        bias = bias.expand(1, 1, q.shape[0], -1)
    queries, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(queries, keys, values, bias)[0].transpose(0, 1)

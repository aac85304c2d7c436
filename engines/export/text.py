"""A text encoder as graphs, one for each length to which prompts are padded.

The embedding stays outside: a table of a gigabyte of which a prompt reads some rows.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from engines.config.validation import require
from engines.export.exporter import GraphFacts, export_graph
from engines.export.graph import StageGraph
from engines.text.umt5 import UMT5Encoder, relative_buckets

ROWS, MASK, EMBEDDING = "rows", "mask", "embedding"

LENGTHS = (64, 128, 256, 512)
"""Tokens; a prompt takes the graph of the least that holds it."""

RECIPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
"""Activations of UMT5 exceed what fp16 holds."""


def text_name(length: int) -> str:
    """Of the graph for prompts of up to `length` tokens."""
    return f"text-{length}"


class _Encoding(nn.Module):
    """The encoder behind its embedding, for prompts of one length."""

    buckets: Tensor

    def __init__(self, encoder: UMT5Encoder, length: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("buckets", relative_buckets(length, encoder.config, torch.device("cpu")))

    @override
    def forward(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """As `UMT5Encoder.encode_rows`."""
        return (self.encoder.encode_rows(rows, mask, self.buckets),)


def export_text_encoder(
    encoder: UMT5Encoder, length: int, folder: Path, weights: str, dtype: torch.dtype
) -> StageGraph:
    """The graph for prompts of up to `length` tokens: rows [1, length, dim], mask [1, length] int64.

    Behind a prompt the mask is zero. `encoder` is left as it is. Raises as `export_graph`; ConfigError for a dtype
    that will not do, and for more tokens than the encoder takes.
    """
    require(dtype in RECIPES, f"text encoders are exported in {' or '.join(map(str, RECIPES))}, not {dtype}")
    most = encoder.config.text_len
    require(1 <= length <= most, f"{length} tokens; this text encoder takes 1 to {most}")
    # The table is not exported, and too large to be copied for nothing.
    memo = {id(encoder.token_embedding): nn.Identity()}
    network = _Encoding(copy.deepcopy(encoder, memo).to("cpu", dtype), length)
    inputs = {
        ROWS: torch.zeros(1, length, encoder.config.dim, dtype=dtype),
        MASK: torch.ones(1, length, dtype=torch.int64),
    }
    facts = GraphFacts(text_name(length), "text", (), RECIPES[dtype], weights)
    return export_graph(network, inputs, [EMBEDDING], facts, folder)

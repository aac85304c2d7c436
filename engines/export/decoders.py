"""A codec's decoder as graphs: one for the first call of a stream and one for all that follow it.

What a decoder remembers goes in as `past_0`, ... and comes out as `kept_0`, ..., by the slots of its `ConvCache`.
A first call has no past. A slot that it leaves empty is not among its outputs: to the next call it is all zeros.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from engines.config.geometry import SPATIAL_FACTOR
from engines.config.validation import require
from engines.export.exporter import GraphFacts, export_graph
from engines.export.graph import StageGraph
from engines.vae.conv_cache import ConvCache
from engines.vae.patch_vae import PatchVAE
from engines.vae.taehv import TAEHV
from engines.vae.wan_vae import WanVAE

LATENTS, PICTURES = "latents", "pictures"

Codec = WanVAE | TAEHV | PatchVAE

RECIPES = {torch.float32: "fp32", torch.float16: "fp16, norms in fp32"}


class DecoderCall(NamedTuple):
    """One kind of call: `frames` latent frames of `height` x `width` pixels, at the start of a stream or later."""

    first: bool
    frames: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """Such as `decoder-steady-3`."""
        return f"decoder-{'first' if self.first else 'steady'}-{self.frames}"


def past_name(slot: int) -> str:
    """What a decoder's slot goes in as."""
    return f"past_{slot}"


def kept_name(slot: int) -> str:
    """What it comes out as."""
    return f"kept_{slot}"


class _Decoding(nn.Module):
    """A call with all that it remembers among its arguments and results."""

    def __init__(self, codec: Codec, *, first: bool) -> None:
        super().__init__()
        self.codec = codec
        self.first = first

    @override
    def forward(self, latents: Tensor, *pasts: Tensor) -> tuple[Tensor, ...]:
        """Pictures [1, N, 3, height, width] fp32 in 0..1, and what each slot keeps that has something to keep."""
        cache = self.codec.start_decoding() if self.first else ConvCache(latents.shape[1], pasts)
        pictures, after = self.codec.decode(latents, cache)
        return (pictures, *(kept for kept in after.frames if kept is not None))


def export_decoder(codec: Codec, call: DecoderCall, folder: Path, weights: str, dtype: torch.dtype) -> StageGraph:
    """The graph of `call`, in fp32 or fp16; `codec`, which must not be fused, is left as it is.

    Raises as `export_graph`; ConfigError for another dtype.
    """
    require(dtype in RECIPES, f"decoders are exported in {' or '.join(map(str, RECIPES))}, not {dtype}")
    codec = copy.deepcopy(codec).to("cpu", dtype)
    channels, factor = codec.config.latent_channels, SPATIAL_FACTOR
    latents = torch.zeros(1, call.frames, channels, call.height // factor, call.width // factor, dtype=dtype)
    begun, steady = _kept(codec, latents)
    pasts = {} if call.first else steady
    state = tuple((past_name(slot), kept_name(slot)) for slot in pasts)
    inputs = {LATENTS: latents} | {past_name(slot): past for slot, past in pasts.items()}
    outputs = [PICTURES, *map(kept_name, begun if call.first else steady)]
    facts = GraphFacts(call.name, "decoder", state, RECIPES[dtype], weights)
    return export_graph(_Decoding(codec, first=call.first), inputs, outputs, facts, folder)


def _kept(codec: Codec, latents: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Zeros in the shapes that each slot keeps after a stream's first call, and after every later one."""
    shapes, cache, after = copy.deepcopy(codec).to("meta"), codec.start_decoding(), []
    for _ in range(2):
        cache = shapes.decode(latents.to("meta"), cache).cache
        after.append({
            slot: torch.zeros_like(x, device="cpu") for slot, x in enumerate(cache.frames) if x is not None
        })  # fmt: skip
    begun, steady = after
    return begun, steady

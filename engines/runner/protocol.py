"""How passes are run: in PyTorch's own operators (`engines.runner.eager`), in kernels (`engines.runner.fused`), or
by graphs (`engines.runner.by_graph`).

The way of a block, and how many there are of each:

    Generator.generate              one per model: which streams go together, what is due before and after
    Rollout.denoise                 one per generator: a block's steps, and each stream's `Row` for them
    ModelRunner.prepare(rows)       one runner per generator. The pass is bound to these rows until the next call;
                                    `FusedRunner` keeps one for each `Shape` of batch, and copies the rows'
                                    integers to where its kernels read them
    BoundPass.denoise               once a step: from a recording of the batch's shape where there are recordings
    CausalTransformer.denoise       the network: it calls an `AttentionContext` (pool, prompts) and `LayerOps`
    EagerAttention, BatchBuffers    the context: PyTorch's operators, or kernels of `kernels.attention`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engines.cache.kv_cache import KVCache, KVFormat
from engines.cache.prompt_kv import EncodedPrompt
from engines.config.networks import TransformerConfig
from engines.runner.rows import Row
from engines.text.prompt import Prompt


class BoundPass(Protocol):
    """A pass over the rows that it was prepared for."""

    def rotate_slots(self) -> None:
        """Turn the keys in slots at fixed places of the window to where those places are now."""

    def denoise(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        """One denoising step: clean latents, or with `noise` those of the next level. The caller owns neither."""

    def write_kv(self, latents: Tensor) -> None:
        """Keys and values only."""


class ModelRunner(Protocol):
    """Runs the passes of one transformer over one cache, one after the other."""

    @property
    def config(self) -> TransformerConfig:
        """The transformer's."""

    @property
    def kv_format(self) -> KVFormat:
        """How windows must keep keys and values."""

    def bind(self, cache: KVCache) -> None:
        """Run over `cache` from now on, and no more over the one before."""

    def unbind(self) -> None:
        """Let go of the cache, and of what was recorded over it, once the device has done all that uses them."""

    def end_recording(self) -> None:
        """Record nothing more: a capture would hold up all streams."""

    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        """Keys and values of a prompt in every layer."""

    def prepare(self, rows: Sequence[Row]) -> BoundPass:
        """A pass over rows of one frame count and picture size; of use until the next call."""

"""The kernels that backends choose, as the transformer and its attention context call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from engines.wan.layer_ops import KV, QKV, AdaLN, EagerOps, Residual
from engines.wan.layers import Attention, pack
from engines.wan.quantized_linear import Projection
from engines.wan.transformer import CausalTransformer
from kernels import linear
from kernels.attention import qk_norm_rope, rotate_slots
from kernels.attention.backend import AttentionBackend
from kernels.attention.kv_view import KVPlanes
from kernels.attention.library import flash_attn_attention, library_attention
from kernels.attention.slots import Slots
from kernels.attention.window import window_attention, window_attention_reference
from kernels.dispatch import KernelBackends
from kernels.layernorm_modulate import add_layernorm, add_layernorm_modulate, layernorm_modulate
from kernels.rms_norm import rms_norm
from kernels.slot_choice import choose_slots, copy_slots
from kernels.slot_choice.slot_queue import SlotQueues, choose_slots_reference, frame_means_reference
from kernels.token_rows import rms_norm_reference


@dataclass(frozen=True)
class AttentionOps:
    """What a batch's attention computes: an op of its name in `kernels`, or that op's reference.

    `one` attends for one row, `many` for several.
    """

    qk_norm_rope: Callable[..., Tensor]
    write_kv: Callable[..., None]
    rotate_slots: Callable[..., None]
    frame_means: Callable[[KVPlanes, int], Tensor]
    choose_slots: Callable[[SlotQueues, Tensor, int, Tensor], None]
    copy_slots: Callable[[KVPlanes, KVPlanes, Slots, int], None]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    prompt_attention: AttentionBackend
    one: AttentionBackend
    many: AttentionBackend

    @classmethod
    def of(cls, backends: KernelBackends, device: torch.device) -> Self:
        """As `backends` say, on `device`."""
        fused, normed = backends.qk_norm_rope == "triton", backends.prompt_attention == "triton"
        return cls(
            qk_norm_rope=qk_norm_rope.qk_norm_rope if fused else qk_norm_rope.qk_norm_rope_reference,
            write_kv=qk_norm_rope.write_kv if fused else qk_norm_rope.write_kv_reference,
            rotate_slots=rotate_slots.rotate_slots if fused else rotate_slots.rotate_slots_reference,
            frame_means=choose_slots.frame_means if fused else frame_means_reference,
            choose_slots=choose_slots.choose_slots if fused else choose_slots_reference,
            copy_slots=copy_slots.copy_slots if fused else copy_slots.copy_slots_reference,
            rms_norm=rms_norm if normed else rms_norm_reference,
            prompt_attention=partial(window_attention, num_splits=1) if normed else window_attention_reference,
            one=_attention(backends.attention, backends, device),
            many=_attention(backends.batched_attention, backends, device),
        )

    def attention(self, rows: int) -> AttentionBackend:
        """The one for so many rows."""
        return self.one if rows == 1 else self.many


def _attention(choice: str, backends: KernelBackends, device: torch.device) -> AttentionBackend:
    attentions: dict[str, AttentionBackend] = {
        "triton": partial(window_attention, fp16_sums=backends.value_sums == "fp16"),
        "reference": window_attention_reference,
        "library": library_attention(device),
        "flash-attn": flash_attn_attention,
    }
    return attentions[choice]


class FusedOps(EagerOps):
    """The ops of one transformer in the kernels that `backends` choose; for inference.

    Its query, key and value weights are laid side by side, where none is quantized, and one product makes all
    three.
    """

    def __init__(self, transformer: CausalTransformer, backends: KernelBackends) -> None:
        self._fuses_norms = backends.layernorm_modulate == "triton"
        self._own_products = backends.linear == "triton"
        self._qkv = {
            name: pack(layers)
            for name, attention in transformer.named_modules()
            if isinstance(attention, Attention) and name.endswith("self_attn")
            and (layers := _unquantized((attention.q, attention.k, attention.v)))
        }  # fmt: skip

    @override
    def modulated_qkv(
        self, name: str, attention: Attention, residual: Residual, norm: AdaLN
    ) -> tuple[Tensor, QKV]:
        if name not in self._qkv:
            return super().modulated_qkv(name, attention, residual, norm)
        x, normed = self._modulated(residual, norm)
        return x, QKV(*self._product(normed.flatten(1, 2), *self._qkv[name]).chunk(3, dim=-1))

    @override
    def modulated_kv(self, name: str, attention: Attention, residual: Residual, norm: AdaLN) -> KV:
        if name not in self._qkv:
            return super().modulated_kv(name, attention, residual, norm)
        rows = self._modulated(residual, norm)[1].flatten(1, 2)
        weight, bias = self._qkv[name]
        queries = attention.q.out_features
        return KV(*self._product(rows, weight[queries:], bias[queries:]).chunk(2, dim=-1))

    @override
    def mlp(self, name: str, ffn: nn.Sequential, residual: Residual, norm: AdaLN, gate: Tensor) -> Residual:
        up, down = cast(Projection, ffn[0]), cast(Projection, ffn[2])
        x, normed = self._modulated(residual, norm)
        gelu = linear.linear_gelu if self._own_products else linear.linear_gelu_library
        return Residual(x, self._linear(gelu(normed, up.weight, up.bias), down), gate)

    @override
    def _modulated(self, residual: Residual, norm: AdaLN) -> tuple[Tensor, Tensor]:
        if not self._fuses_norms:
            return super()._modulated(residual, norm)
        x, branch, gate = residual
        if branch is None:
            return x, layernorm_modulate(x, *norm)
        return add_layernorm_modulate(x, branch, gate, *norm)

    @override
    def _normed(self, residual: Residual, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        x, branch, gate = residual
        if branch is None or not self._fuses_norms:
            return super()._normed(residual, norm)
        return add_layernorm(x, branch, gate, norm.weight, norm.bias, norm.eps)

    @override
    def _linear(self, x: Tensor, layer: Projection) -> Tensor:
        return self._product(x, layer.weight, layer.bias)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear.linear(x.contiguous(), weight, bias) if self._own_products else F.linear(x, weight, bias)


def _unquantized(layers: Sequence[Projection]) -> list[nn.Linear]:
    """The layers, if none of them is quantized."""
    plain = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return plain if len(plain) == len(layers) else []

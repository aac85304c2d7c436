"""The kernels that backends choose, as the transformer and its attention context call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from engines.wan.layer_ops import EagerOps, LayerOps
from kernels import linear, rms_norm
from kernels.attention import qk_norm_rope, rotate_slots
from kernels.attention.backend import AttentionBackend
from kernels.attention.library import flash_attn_attention, library_attention
from kernels.attention.window import window_attention, window_attention_reference
from kernels.dispatch import KernelBackends
from kernels.gated_residual import gated_residual
from kernels.layernorm_modulate import layernorm_modulate


@dataclass(frozen=True)
class AttentionOps:
    """What a batch's attention computes: an op of its name in `kernels`, or that op's reference.

    `one` attends for one row, `many` for several.
    """

    qk_norm_rope: Callable[..., Tensor]
    write_kv: Callable[..., None]
    rotate_slots: Callable[..., None]
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
            rms_norm=rms_norm.rms_norm if normed else rms_norm.rms_norm_reference,
            prompt_attention=partial(window_attention, num_splits=1) if normed else window_attention_reference,
            one=_attention(backends.attention, device),
            many=_attention(backends.batched_attention, device),
        )

    def attention(self, rows: int) -> AttentionBackend:
        """The one for so many rows."""
        return self.one if rows == 1 else self.many


def _attention(choice: str, device: torch.device) -> AttentionBackend:
    backends: dict[str, AttentionBackend] = {
        "triton": window_attention,
        "reference": window_attention_reference,
        "library": library_attention(device),
        "flash-attn": flash_attn_attention,
    }
    return backends[choice]


class FusedOps(EagerOps):
    """PyTorch's operators, but for those that `backends` gives to Triton."""

    def __init__(self, backends: KernelBackends) -> None:
        self._modulates = backends.layernorm_modulate == "triton"
        self._adds = backends.gated_residual == "triton"

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        """One kernel."""
        return (
            layernorm_modulate(x, shift, scale, eps) if self._modulates else super().modulate(x, shift, scale, eps)
        )

    def project_onto(self, x: Tensor, layer: nn.Linear, y: Tensor, gate: Tensor | None) -> Tensor:
        """The library's product, then one kernel."""
        if gate is None or not self._adds:
            return super().project_onto(x, layer, y, gate)
        return gated_residual(x, layer(y).view_as(x), gate)


class FusedLinearOps(FusedOps):
    """The same with Triton's products, which do what follows them while it is in registers."""

    def project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """One kernel."""
        return linear.linear(x.contiguous(), layer.weight, layer.bias)

    def project_gelu(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """One kernel."""
        return linear.linear_gelu(x.contiguous(), layer.weight, layer.bias)

    def project_onto(self, x: Tensor, layer: nn.Linear, y: Tensor, gate: Tensor | None) -> Tensor:
        """One kernel."""
        return linear.linear_residual(y.contiguous(), layer.weight, layer.bias, x, gate)


def layer_ops(backends: KernelBackends) -> LayerOps:
    """What computes a layer besides attention."""
    return FusedLinearOps(backends) if backends.linear == "triton" else FusedOps(backends)

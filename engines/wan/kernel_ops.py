"""The kernels that a plan chooses, as the transformer and its memory call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from engines.wan.transformer import LayerOps, PlainOps
from kernels import linear, norm_rope, rms_norm
from kernels.dispatch import KernelPlan
from kernels.library_attention import Library, WindowAttention, cudnn, flash_attn, library_attention, torch_cpu
from kernels.merge import merge, merge_reference
from kernels.modulate import modulate
from kernels.norm_rope import Queries
from kernels.residual import residual
from kernels.window_attention import unsplit_attention, window_attention, window_attention_reference


@dataclass(frozen=True)
class AttentionOps:
    """What a memory computes: an op of its name in `kernels`, or that op's reference.

    `one` attends one stream's slab, `many` those of several. `finding` lists those of the two that read from the
    device where slabs are.
    """

    norm_rope: Callable[..., Queries]
    norm_rope_keys: Callable[..., None]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    prompt_attention: WindowAttention
    one: WindowAttention
    many: WindowAttention
    finding: frozenset[WindowAttention] = frozenset({window_attention})

    @classmethod
    def of(cls, plan: KernelPlan, device: torch.device) -> Self:
        """As `plan` says, on `device`."""
        fused, normed = plan.norm_rope == "triton", plan.prompt_attention == "triton"
        return cls(
            norm_rope=norm_rope.norm_rope if fused else norm_rope.norm_rope_reference,
            norm_rope_keys=norm_rope.norm_rope_keys if fused else norm_rope.norm_rope_keys_reference,
            rms_norm=rms_norm.rms_norm if normed else rms_norm.rms_norm_reference,
            prompt_attention=unsplit_attention if normed else window_attention_reference,
            one=_attention(plan.attention, plan, device),
            many=_attention(plan.batched_attention, plan, device),
        )

    def attention(self, streams: int) -> WindowAttention:
        """The one for so many streams."""
        return self.one if streams == 1 else self.many

    def finds_slabs(self, streams: int) -> bool:
        """Whether that one reads from the device where slabs are."""
        return self.attention(streams) in self.finding


def _attention(choice: str, plan: KernelPlan, device: torch.device) -> WindowAttention:
    if choice == "triton":
        return window_attention
    if choice == "reference":
        return window_attention_reference
    libraries: dict[str, Library] = {
        "library": cudnn if device.type == "cuda" else torch_cpu,
        "flash-attn": flash_attn,
    }
    return library_attention(libraries[choice], merge if plan.merge == "triton" else merge_reference)


class KernelOps(PlainOps):
    """PyTorch's operators, but for those that a plan gives to Triton."""

    def __init__(self, plan: KernelPlan) -> None:
        self._modulates = plan.modulate == "triton"
        self._adds = plan.residual == "triton"

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        """One kernel."""
        return modulate(x, shift, scale, eps) if self._modulates else super().modulate(x, shift, scale, eps)

    def project_onto(self, x: Tensor, layer: nn.Linear, y: Tensor, gate: Tensor | None) -> Tensor:
        """The library's product, then one kernel."""
        if gate is None or not self._adds:
            return super().project_onto(x, layer, y, gate)
        return residual(x, layer(y).view_as(x), gate)


class LinearOps(KernelOps):
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


def layer_ops(plan: KernelPlan) -> LayerOps:
    """What computes a layer besides attention."""
    return LinearOps(plan) if plan.linear == "triton" else KernelOps(plan)

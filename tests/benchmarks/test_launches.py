from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_cases.launches import launches_of
from engines.cache.kv_cache import CacheLayout, KVCache, cache_size
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.runner.batch import BatchBuffers
from engines.runner.rows import Shape, TokenGrid
from engines.wan.fused_ops import AttentionOps, FusedOps
from engines.wan.transformer import CausalTransformer
from kernels.attention.kv_view import KVView
from kernels.dispatch import KernelBackends, backends_for

META = torch.device("meta")
BF16 = torch.bfloat16
LONGLIVE = preset("longlive-1.3b")
STREAM = StreamConfig()

LAYER = [
    "aten.addmm",  # Queries, keys and values.
    "longtake.qk_norm_rope",
    "aten.zeros_like",  # Stands for the attention to the window, which looks at its device.
    "aten.addmm",
    "longtake.add_layernorm",
    "aten.addmm",
    "longtake.rms_norm",
    "aten.zeros_like",  # The same for the prompt.
    "aten.addmm",
    "longtake.add_layernorm_modulate",
    "aten._addmm_activation",
    "aten.addmm",
    "longtake.add_layernorm_modulate",  # The next layer's, or the head's.
]


def h200(monkeypatch: pytest.MonkeyPatch) -> KernelBackends:
    """What an H200 gets for a model in bf16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return backends_for(torch.device("cuda"), BF16)


def one_kernel(queries: Tensor, kv: KVView, layer: int) -> Tensor:
    return torch.zeros_like(queries)


@torch.inference_mode()
def pass_of(layers: int, backends: KernelBackends, *, clean: bool = False) -> list[str]:
    """The kernels of a pass over a block with a full window."""
    config = replace(LONGLIVE.transformer, layers=layers)
    with META:
        transformer = CausalTransformer(config).to(BF16)
    cache = KVCache(CacheLayout.of(config, BF16), cache_size(1, STREAM, config), META)
    grid = TokenGrid(STREAM.rows, STREAM.columns)
    shape = Shape(1, 3, grid, 12 * STREAM.frame_tokens, layered=False, raw=True, rolling=None)
    spatial = torch.empty(STREAM.frame_tokens, 42, dtype=torch.complex64, device=META)
    attention = replace(AttentionOps.of(backends, META), one=one_kernel, prompt_attention=one_kernel)
    context = BatchBuffers(attention, cache, shape, spatial, config.text_len)
    latents = torch.empty(1, *STREAM.latent_shape(16, 3), device=META, dtype=BF16)
    modulations = transformer.modulations(torch.empty(1, 1, device=META))
    ops = FusedOps(transformer, backends)
    run = transformer.write_kv if clean else transformer.denoise
    return launches_of(lambda: run(latents, modulations, context, ops))


def test_a_layer_on_an_h200_launches_thirteen_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = h200(monkeypatch)
    one, two = pass_of(1, backends), pass_of(2, backends)
    assert len(two) - len(one) == len(LAYER) <= 14
    first = two.index("longtake.layernorm_modulate")
    assert two[first + 1 : first + 27] == 2 * LAYER


def test_a_clean_pass_ends_with_one_product_and_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pass_of(2, h200(monkeypatch), clean=True)
    assert made[-len(LAYER) - 2 :] == [*LAYER, "aten.addmm", "longtake.qk_norm_rope"]


def test_an_operator_that_computes_is_a_launch_and_a_view_is_none() -> None:
    x, weight, bias = (torch.empty(shape, device=META) for shape in ((2, 3, 4), (6, 4), (6,)))
    assert launches_of(lambda: F.linear(x, weight, bias).chunk(2, -1)[0].flatten(0, 1)) == ["aten.addmm"]
    assert launches_of(lambda: x.transpose(1, 2).flatten(0, 1)) == ["aten.clone"]
    assert launches_of(lambda: torch.empty_like(x)) == []
    assert launches_of(lambda: x.view(6, 4).copy_(weight)) == ["aten.copy_"]

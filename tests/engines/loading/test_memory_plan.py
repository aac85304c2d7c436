"""What models take of a graphics card, counted: the figures that 24 GB cards are planned with."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch

from engines.cache.kv_cache import PLAIN_KV, KVFormat
from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1, preset
from engines.config.quantization import QuantizationConfig
from engines.loading.memory_plan import plan_memory
from engines.wan.transformer import CausalTransformer

LONGLIVE = preset("longlive-1.3b")
STREAM_DIFFUSION, STREAM_DIFFUSION_14B = preset("streamdiffusionv2-1.3b"), preset("streamdiffusionv2-14b")
INT8 = replace(LONGLIVE, transformer=replace(LONGLIVE.transformer, quantization=QuantizationConfig("int8", 0.5)))
INT8_TINY = replace(INT8, vae=TAEW2_1)
USABLE_24, USABLE_16 = 22_500_000_000, 14_800_000_000
"""Of cards of 24 and 16 GB."""


@pytest.mark.parametrize(
    ("config", "kv_format", "one", "two", "in_24", "in_16"),
    [
        (LONGLIVE, PLAIN_KV, 14.7, 20.2, 2, 0),
        (INT8, PLAIN_KV, 13.5, 19.0, 2, 1),
        (INT8_TINY, PLAIN_KV, 6.9, 10.6, 5, 3),
        (INT8_TINY, KVFormat(int8_keys=True), 6.1, 8.9, 6, 3),
        (INT8_TINY, KVFormat(int8_keys=True, int8_values=True), 5.2, 7.2, 9, 5),
        (STREAM_DIFFUSION, PLAIN_KV, 15.6, 22.3, 2, 0),
        (STREAM_DIFFUSION_14B, PLAIN_KV, 54.0, 73.2, 0, 0),
    ],
)
def test_sessions_at_480x832_without_the_text_encoder(
    config: ModelConfig, kv_format: KVFormat, one: float, two: float, in_24: int, in_16: int
) -> None:
    plan = plan_memory(config, torch.bfloat16, kv_format, text_here=False)
    assert plan.nbytes(1) / 1e9 == pytest.approx(one, rel=0.04)
    assert plan.nbytes(2) / 1e9 == pytest.approx(two, rel=0.04)
    assert (plan.sessions_in(USABLE_24), plan.sessions_in(USABLE_16)) == (in_24, in_16)


def test_the_text_encoder_is_counted_where_it_is() -> None:
    here, elsewhere = (plan_memory(INT8, torch.bfloat16, text_here=here) for here in (True, False))
    assert here.nbytes(1) - elsewhere.nbytes(1) == elsewhere.host[0].nbytes
    assert elsewhere.host[0].nbytes / 1e9 == pytest.approx(11.36, abs=0.01)
    assert here.host == ()
    assert here.sessions_in(1000) == 0


def test_the_sum_is_written_out_and_says_what_is_an_estimate() -> None:
    plan = plan_memory(INT8_TINY, torch.bfloat16, KVFormat(True, True), text_here=False)
    lines = plan.lines(2)
    assert "transformer, int8" in lines[1]
    assert any("a session's window, keys INT8 and values INT8" in line for line in lines)
    assert [line for line in lines if "estimate" in line] == [str(line) for line in plan.fixed if line.estimated]
    assert lines[-2].split() == [f"{plan.nbytes(2) / 1e9:.2f}", "GB", "with", "2", "sessions"]
    assert lines[-1].endswith("text encoder of the host's memory")


def test_a_model_that_restyles_videos_counts_a_window_for_every_step_and_the_encoder() -> None:
    text = preset("self-forcing-1.3b")
    plan, without = plan_memory(STREAM_DIFFUSION, torch.bfloat16), plan_memory(text, torch.bfloat16)
    lines = {line.what: line.nbytes for line in plan.session}
    assert lines["a session's cache of the encoder"] > 0
    assert lines["a session's window, keys plain and values plain"] == 2 * 6 * 1560 * 30 * 2 * 1536 * 2
    assert "a session's cache of the encoder" not in {line.what for line in without.session}


def test_the_14b_model_has_the_tensors_of_wans_and_a_window_of_40_layers_for_every_step() -> None:
    with torch.device("meta"):
        network = CausalTransformer(STREAM_DIFFUSION_14B.transformer)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(shapes) == 15 + 40 * 27
    assert shapes["blocks.39.ffn.0.weight"] == (13824, 5120)
    assert sum(map(prod, shapes.values())) == 14_288_491_584
    plan = plan_memory(STREAM_DIFFUSION_14B, torch.bfloat16)
    lines = {line.what: line.nbytes for line in plan.session}
    assert lines["a session's window, keys plain and values plain"] == 2 * 6 * 1560 * 40 * 2 * 5120 * 2

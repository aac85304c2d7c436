"""What models take of a graphics card, counted: the figures that 24 GB cards are planned with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import pytest
import torch

from engines.cache.kv_cache import PLAIN_KV, KVFormat
from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1, preset
from engines.config.quantization import QuantizationConfig
from engines.config.stream import StreamConfig
from engines.config.video_stream import AnyStreamConfig
from engines.device.memory_budget import RESERVE_BYTES, MemoryBudget
from engines.errors import ConfigError
from engines.loading.footprint import parameter_bytes, session_bytes
from engines.loading.memory_plan import CONTEXT_BYTES, WORKSPACE_PER_VALUE, PlanBytes, plan_memory
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig, build_generator
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
        (LONGLIVE, PLAIN_KV, 17.1, 22.7, 1, 0),
        (INT8, PLAIN_KV, 15.8, 21.4, 2, 0),
        (INT8_TINY, PLAIN_KV, 9.3, 13.0, 4, 2),
        (INT8_TINY, KVFormat(int8_keys=True), 8.5, 11.4, 5, 3),
        (INT8_TINY, KVFormat(int8_keys=True, int8_values=True), 7.6, 9.7, 8, 4),
        (STREAM_DIFFUSION, PLAIN_KV, 18.8, 26.6, 1, 0),
        (STREAM_DIFFUSION_14B, PLAIN_KV, 57.9, 78.1, 0, 0),
    ],
)
def test_sessions_at_480x832_without_the_text_encoder(
    config: ModelConfig, kv_format: KVFormat, one: float, two: float, in_24: int, in_16: int
) -> None:
    plan = plan_memory(config, torch.bfloat16, kv_format, text_here=False)
    assert plan.nbytes(1) / 1e9 == pytest.approx(one, rel=0.01)
    assert plan.nbytes(2) / 1e9 == pytest.approx(two, rel=0.01)
    assert (plan.sessions_in(USABLE_24), plan.sessions_in(USABLE_16)) == (in_24, in_16)


@pytest.mark.parametrize(("config", "two"), [(INT8, 19.3), (INT8_TINY, 10.9)], ids=["Wan VAE", "TAEHV"])
def test_between_recaches_and_without_the_reserve_two_sessions_take_less(config: ModelConfig, two: float) -> None:
    plan = plan_memory(config, torch.bfloat16, text_here=False)
    window, block = config.stream.window_frames, config.stream.block_frames
    beyond_a_block = pass_bytes(config) * (window - block) / window
    assert (plan.nbytes(2) - RESERVE_BYTES - beyond_a_block) / 1e9 == pytest.approx(two, rel=0.01)


def test_the_text_encoder_is_counted_where_it_is() -> None:
    here, elsewhere = (plan_memory(INT8, torch.bfloat16, text_here=here) for here in (True, False))
    assert here.nbytes(1) - elsewhere.nbytes(1) == elsewhere.host[0].nbytes
    assert elsewhere.host[0].nbytes / 1e9 == pytest.approx(11.36, abs=0.01)
    assert here.host == ()
    assert here.sessions_in(1000) == 0


def test_the_sum_is_written_out_and_says_what_is_an_estimate() -> None:
    plan = plan_memory(INT8_TINY, torch.bfloat16, KVFormat(True, True), text_here=False)
    lines = plan.lines(2)
    assert "transformer, int8" in lines[2]
    assert any("a session's window, keys INT8 and values INT8" in line for line in lines)
    assert [line for line in lines if line.endswith("an estimate")] == [
        str(line) for line in plan.fixed if line.estimated
    ]
    estimates = sum(line.nbytes for line in plan.fixed if line.estimated)
    assert lines[-2].strip() == (
        f"{plan.nbytes(2) / 1e9:.2f} GB  with 2 sessions, {estimates / 1e9:.2f} GB of it estimates"
    )
    assert lines[-1].endswith("text encoder of the host's memory")


def pass_bytes(config: ModelConfig, batch: int = 1, streams: Sequence[AnyStreamConfig] = ()) -> int:
    plan = plan_memory(config, torch.bfloat16, streams=streams, batch=batch)
    return next(line.nbytes for line in plan.fixed if line.what.startswith("the largest pass"))


def test_the_largest_pass_is_a_recache_of_a_whole_window_for_all_that_share_it() -> None:
    frame = pass_bytes(LONGLIVE) / 12
    assert frame == pytest.approx(WORKSPACE_PER_VALUE * 1560 * 8960, rel=1e-6)
    assert pass_bytes(LONGLIVE, batch=4) / frame == pytest.approx(48)
    assert pass_bytes(STREAM_DIFFUSION) / frame == pytest.approx(2)
    larger = replace(LONGLIVE.stream, height=960)
    assert pass_bytes(LONGLIVE, streams=[LONGLIVE.stream, larger]) / frame == pytest.approx(24)


def test_what_a_plan_has_room_for_is_what_a_generator_has_room_for(model: Model, small: StreamConfig) -> None:
    plan = plan_memory(model.config, torch.float32, streams=[small])
    fixed = {line.what: line.nbytes for line in plan.fixed}
    decoder = session_bytes(model.config, small, torch.float32).decoder
    working = sum(nbytes for what, nbytes in fixed.items() if "pass" in what or "decoding" in what) + decoder
    loaded = CONTEXT_BYTES + sum(parameter_bytes(model.config, torch.float32))
    left = MemoryBudget(plan.nbytes(2) - loaded, working).lasting
    build_generator(model, EngineConfig(small, sessions=2, cache_bytes=left))
    with pytest.raises(ConfigError, match="1 would fit"):
        build_generator(model, EngineConfig(small, sessions=2, cache_bytes=left - 1))
    assert plan.sessions_in(plan.nbytes(2) - 1) == 1


def test_a_model_that_restyles_videos_counts_a_window_for_every_step_and_two_caches_of_the_encoder() -> None:
    text = preset("self-forcing-1.3b")
    plan, without = plan_memory(STREAM_DIFFUSION, torch.bfloat16), plan_memory(text, torch.bfloat16)
    lines = {line.what: line.nbytes for line in plan.session}
    assert lines["a session's caches of the encoder"] / 2**30 == pytest.approx(2 * 1.045, abs=0.005)
    assert lines["a session's window, keys plain and values plain"] == 2 * 6 * 1560 * 30 * 2 * 1536 * 2
    assert "a session's caches of the encoder" not in {line.what for line in without.session}


def test_an_encoder_beside_a_tiny_decoder_is_counted() -> None:
    tiny = replace(STREAM_DIFFUSION, vae=TAEW2_1, encoder=STREAM_DIFFUSION.vae)
    codecs = [parameter_bytes(config, torch.bfloat16).codec for config in (tiny, INT8_TINY, STREAM_DIFFUSION)]
    assert codecs[0] == codecs[1] + codecs[2]
    plan = {line.what: line.nbytes for line in plan_memory(tiny, torch.bfloat16).fixed}
    assert plan["decoder and encoder"] == codecs[0]
    assert plan["encoding a block"] / 1e9 == pytest.approx(0.92, abs=0.01)


def test_a_text_encoder_that_plans_run_has_its_layers_in_each_of_them() -> None:
    config, plans = preset("longlive-1.3b"), PlanBytes("text", 37_000_000_000, 300_000_000)
    lines = {line.what: line for line in plan_memory(config, torch.bfloat16, plans=[plans]).fixed}
    text = config.text_encoder
    assert lines["text encoder"].nbytes == pytest.approx(2 * text.vocab * text.dim, rel=0.001)
    assert lines["plans of the text"].nbytes == 37_000_000_000
    assert lines["activations of the largest plan of the text"].estimated


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

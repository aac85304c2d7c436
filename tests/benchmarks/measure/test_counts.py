"""The formulas against the real networks, run on tensors without memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.counts import Counts, Parameters
from engines.cache.kv_cache import CacheLayout, KVCache, cache_size
from engines.cache.window import Placement, SinkWindow, window_policy
from engines.config.geometry import SPATIAL_FACTOR
from engines.config.model import ModelConfig
from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.config.stream import StreamConfig
from engines.runner.eager import EagerRunner
from engines.runner.rows import Row, TokenGrid
from engines.sampling.flow_schedule import CLEAN
from engines.text.prompt import Prompt
from engines.text.umt5 import UMT5Encoder
from engines.wan.transformer import CausalTransformer

META = torch.device("meta")
LONGLIVE = preset("longlive-1.3b")
WINDOW = SinkWindow(frames=12, sink=3)
FULL = WINDOW.place(27, 3, repeat=True)
RECACHE_ALL = WINDOW.place_recache(12)
RECACHE_RING = WINDOW.place_recache(27)


def counts(model: ModelConfig, prompt_keys: int | None = None) -> Counts:
    return Counts(model, model.stream, torch.bfloat16, prompt_keys)


def on_meta(model: ModelConfig) -> CausalTransformer:
    with META:
        return CausalTransformer(model.transformer).to(torch.bfloat16)


@torch.inference_mode()
def counted_pass(model: ModelConfig, placement: Placement, *, prompt_tokens: int, clean: bool) -> int:
    """FLOPs that torch counts in a pass of the real transformer over a real cache, neither with any memory."""
    runner, stream = EagerRunner(on_meta(model)), model.stream
    layout = CacheLayout.of(model.transformer, torch.bfloat16)
    cache = KVCache(layout, cache_size(1, stream, model.transformer), META)
    runner.bind(cache)
    prompt = Prompt("", torch.empty(prompt_tokens, model.transformer.text_dim, device=META))
    row = Row(
        cache.open(window_policy(stream), stream.frame_tokens),
        cache.prompts.take(prompt, lambda: runner.encode_prompt(prompt)),
        placement, TokenGrid(stream.rows, stream.columns), CLEAN,
    )  # fmt: skip
    bound, latents = runner.prepare([row]), meta_latents(stream, placement.frames)
    with FlopCounterMode(display=False) as counter:
        if clean:
            bound.write_kv(latents)
        else:
            bound.denoise(latents, None)
    return counter.get_total_flops() - modulation_flops(model)


def modulation_flops(model: ModelConfig) -> int:
    """Of a timestep's modulations, which are made once."""
    with FlopCounterMode(display=False) as counter:
        on_meta(model).modulations(torch.empty(1, 1, device=META))
    return counter.get_total_flops()


def meta_latents(stream: StreamConfig, frames: int) -> torch.Tensor:
    height, width = stream.height // SPATIAL_FACTOR, stream.width // SPATIAL_FACTOR
    return torch.empty(1, frames, 16, height, width, device=META, dtype=torch.bfloat16)


def number_of_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_longlive_has_the_published_number_of_parameters() -> None:
    assert Parameters.of(LONGLIVE.transformer).total == 1_418_996_800
    assert number_of_parameters(on_meta(LONGLIVE)) == 1_418_996_800


@pytest.mark.parametrize("name", ["tiny", "tiny-taehv"])
def test_parameters_are_those_of_the_module(name: str) -> None:
    assert Parameters.of(preset(name).transformer).total == number_of_parameters(on_meta(preset(name)))


def test_a_full_window_pass_of_longlive_is_28_3_tflop() -> None:
    assert counts(LONGLIVE).denoising_pass(12).flops / 1e12 == pytest.approx(28.3, abs=0.05)


@pytest.mark.parametrize(
    "stream", [StreamConfig(rope="relative"), StreamConfig(rope="absolute")], ids=lambda s: s.rope
)
def test_torch_counts_the_same_flops_in_a_full_window_pass(stream: StreamConfig) -> None:
    model = replace(LONGLIVE, stream=stream)
    counted = counted_pass(model, FULL, prompt_tokens=512, clean=False)
    assert counts(model).denoising_pass(12).flops == counted


def test_folded_padding_is_one_more_key_than_the_prompt_has_tokens() -> None:
    counted = counted_pass(LONGLIVE, FULL, prompt_tokens=40, clean=False)
    assert counts(LONGLIVE, prompt_keys=41).denoising_pass(12).flops == counted


@pytest.mark.parametrize("filled", [1, 2, 3, 4])
def test_torch_counts_the_same_flops_while_the_window_fills(filled: int) -> None:
    model = preset("tiny")
    placement = WINDOW.place(3 * (filled - 1), 3, repeat=False)
    counted = counted_pass(model, placement, prompt_tokens=256, clean=False)
    assert counts(model).denoising_pass(3 * filled).flops == counted


@pytest.mark.parametrize(
    ("placement", "frames"), [(FULL, 3), (RECACHE_RING, 9), (RECACHE_ALL, 12)], ids=["clean", "ring", "all"]
)
def test_torch_counts_the_same_flops_in_a_clean_pass(placement: Placement, frames: int) -> None:
    counted = counted_pass(LONGLIVE, placement, prompt_tokens=512, clean=True)
    assert counts(LONGLIVE).clean_pass(frames, 12).flops == pytest.approx(counted, rel=1e-5)


def test_a_recache_that_keeps_the_sink_computes_nine_frames() -> None:
    longlive = counts(LONGLIVE)
    assert longlive.recache(keep_sink=True) == longlive.clean_pass(9, 12)
    assert longlive.recache(keep_sink=False) == longlive.clean_pass(12, 12)


def test_a_pass_reads_its_weights_and_the_window_once() -> None:
    parameters = Parameters.of(LONGLIVE.transformer)
    window, prompt = 2 * 30 * 12 * 1560 * 1536 * 2, 2 * 30 * 512 * 1536 * 2
    assert counts(LONGLIVE).denoising_pass(12).nbytes == 2 * parameters.denoising + window + prompt


def test_the_wan_vae_decodes_a_block_in_three_times_12_92_tflop() -> None:
    assert counts(LONGLIVE).decode_block().flops / 1e12 == pytest.approx(3 * 12.92, rel=1e-3)


@pytest.mark.parametrize("name", ["tiny", "tiny-taehv"])
def test_the_codec_moves_at_least_its_pictures_and_latents(name: str) -> None:
    tiny = counts(preset(name))
    pictures, latents = 12 * 3 * 64 * 96, 3 * 16 * 8 * 12
    assert tiny.decode_block().nbytes > pictures + 2 * latents
    assert tiny.encode_block().nbytes > 2 * (pictures + latents)


@torch.inference_mode()
def test_torch_counts_the_same_flops_in_the_text_encoder() -> None:
    model = preset("tiny")
    with META:
        encoder, ids = UMT5Encoder(model.text_encoder), torch.ones(1, 40, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        encoder(ids, torch.ones_like(ids))
    assert counts(model).encode_text(40).flops == counter.get_total_flops()


@torch.inference_mode()
def test_torch_counts_the_same_flops_in_reading_a_prompt() -> None:
    rows = torch.empty(41, 4096, device=META)
    with FlopCounterMode(display=False) as counter:
        on_meta(LONGLIVE).prompt_kv(rows)
    assert counts(LONGLIVE).read_prompt(41).flops == counter.get_total_flops()


def test_a_block_is_its_steps_its_clean_pass_and_its_pictures() -> None:
    tiny = counts(preset("tiny"))
    parts = tiny.denoising_pass(12) * 4 + tiny.clean_pass(3, 12) + tiny.decode_block()
    assert tiny.block() == parts


def test_in_8_bits_the_same_is_multiplied_and_fewer_bytes_are_read() -> None:
    int8 = replace(LONGLIVE, transformer=replace(LONGLIVE.transformer, quantization=QuantizationConfig("int8")))
    stages = [(x.denoising_pass(12), x.clean_pass(3, 12)) for x in (counts(LONGLIVE), counts(int8))]
    for whole, rounded in zip(*stages, strict=True):
        assert rounded.flops + rounded.eight_bit_ops == whole.flops
        assert rounded.eight_bit_ops > 0.4 * whole.flops
    with META:
        state = CausalTransformer(int8.transformer).state_dict()
    eight_bit = sum(x.numel() for x in state.values() if x.dtype == torch.int8)
    saved = counts(LONGLIVE).denoising_pass(12).nbytes - counts(int8).denoising_pass(12).nbytes
    assert saved == eight_bit

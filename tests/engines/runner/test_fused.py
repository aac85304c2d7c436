"""The engine on kernels, under Triton's interpreter, against its plain path and LongLive's own recording."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from benchmarks.host_time import Idle
from engines.config.networks import TransformerConfig
from engines.config.presets import PRESETS, preset
from engines.config.stream import StreamConfig
from engines.errors import ConfigError, SnapshotError
from engines.loading.loader import load_model
from engines.loading.model import Model
from engines.pocket.model_files import model_files
from engines.runner.batch import raw_plane, window_planes
from engines.runner.eager import EagerRunner
from engines.runner.fused import FusedRunner
from engines.runner.selection import WIDEST_TOKEN, can_use_cuda_graphs, select_runner
from engines.streaming.generator import Generator
from engines.streaming.snapshot import restore, take_exact, take_light
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from engines.wan.fused_ops import AttentionOps
from engines.wan.transformer import CausalTransformer
from kernels.attention.kv_view import KVPlanes, KVView
from kernels.attention.window import window_attention
from kernels.attention.window_tiles import SplitConfig
from kernels.dispatch import EAGER, KernelBackends, backends_for, parse_backends
from kernels.tiles import Tile
from tests.conftest import RECORDINGS
from tests.reference.recording import RecordedNoise, Recording
from tests.support.fake_capture import Recordings
from tests.support.generators import denoiser_for
from tests.support.rollouts import roll

KERNELS = backends_for(torch.device("cpu"), torch.float32, parse_backends("triton,linear=library"))

TINY = StreamConfig(seed=5, height=16, width=32, steps=(1000, 500))
"""Two tokens a frame: the interpreter takes its time for each."""

ATOL = 1e-5
"""For latents of about one, as for the recordings; a kernel is a few last places from its reference."""


@pytest.fixture(scope="session")
def model() -> Model:
    """With no more layers than it takes for the last one to be special."""
    tiny = preset("tiny-taehv")
    return Model.random(replace(tiny, transformer=replace(tiny.transformer, layers=2)), seed=1)


def on_kernels(
    model: Model, backends: KernelBackends = KERNELS, *, batch: int = 1, record: Recordings | None = None
) -> Generator:
    runner = FusedRunner(model.transformer, backends, record)
    return denoiser_for(model.transformer, batch=batch, runner=runner)


@pytest.mark.slow
def test_kernels_reproduce_a_recorded_clip_with_a_switch() -> None:
    recording = Recording(RECORDINGS / "rollout_relative.safetensors")
    transformer = CausalTransformer(recording.transformer())
    transformer.load_state_dict(recording.weights("model."))
    generator = denoiser_for(transformer, runner=select_runner(transformer, KERNELS, graphs=False))
    stream = generator.open(recording.stream(), RecordedNoise(recording, row=0))
    latents = roll(generator, stream, 4, {0: recording.prompt(0, row=0), 3: recording.prompt(1, row=0)})
    torch.testing.assert_close(latents, recording["latents"][0, :12], rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("rope", "other"),
    [
        ("relative", "attention=triton"), ("relative", "attention=library"), ("relative", "attention=reference"),
        ("relative", "linear=triton"), ("absolute", "attention=triton"),
    ],
)  # fmt: skip
def test_a_rolled_window_is_attended_alike_by_every_plan(
    model: Model, prompts: list[Prompt], rope: Literal["relative", "absolute"], other: str
) -> None:
    plain = denoiser_for(model.transformer)
    stream = plain.open(replace(TINY, rope=rope, steps=(1000,)))
    roll(plain, stream, 6, {0: prompts[0], 5: prompts[1]})
    plain.write_context([stream])
    kernels = on_kernels(model, replace(KERNELS, **parse_backends(other)))
    twin = restore(kernels, take_exact(plain, stream)).stream
    torch.testing.assert_close(
        roll(kernels, twin, 2, {7: prompts[2]}), roll(plain, stream, 2, {7: prompts[2]}), rtol=0, atol=ATOL
    )


INT8_KEYS, INT8_VALUES = replace(KERNELS, keys="int8"), replace(KERNELS, values="int8")
INT8 = replace(INT8_KEYS, values="int8")


@pytest.mark.parametrize("rows", [("keys",), ("keys", "values")], ids="+".join)
def test_int8_is_attended_alike_by_kernels_and_references(
    model: Model, prompts: list[Prompt], rows: tuple[str, ...]
) -> None:
    made, asked = [], dict.fromkeys(rows, "int8")
    for backends in (replace(KERNELS, **asked), replace(EAGER, **asked), KERNELS):
        generator = on_kernels(model, backends)
        made.append(roll(generator, generator.open(TINY), 3, {0: prompts[0], 2: prompts[1]}))
    ours, reference, plain = made
    # A rounding to INT8 may fall to either side where the two differ in their last places.
    assert (ours - reference).abs().mean() < 1e-4
    assert 1e-4 < (ours - plain).square().mean().sqrt() < 2e-2


def test_sums_in_fp16_are_near_those_in_fp32(model: Model, prompts: list[Prompt]) -> None:
    exact, near = (
        roll(generator, generator.open(replace(TINY, steps=(1000,))), 2, {0: prompts[0]})
        for generator in (on_kernels(model, backends) for backends in (INT8, replace(INT8, value_sums="fp16")))
    )
    assert 1e-6 < (near - exact).norm() / exact.norm() < 1e-3


def test_int8_windows_cost_the_pocket_model_less_than_bf16() -> None:
    config = preset("pocket")
    loaded = load_model(config, model_files(), "cpu", torch.float32)
    transformer, rounded = loaded.model.transformer, copy.deepcopy(loaded.model.transformer).bfloat16()
    encoder = PromptEncoder(loaded.tokenizer, loaded.model.text_encoder, capacity=1)
    prompt = encoder.encode("a lighthouse at night")
    int8 = replace(EAGER, keys="int8", values="int8")
    exact, near, bf16 = (
        roll(generator, generator.open(replace(config.stream, seed=3)), 4, {0: prompt}).float()
        for generator in (
            denoiser_for(transformer),
            denoiser_for(transformer, runner=FusedRunner(transformer, int8, None)),
            denoiser_for(rounded),
        )
    )
    assert (near - exact).norm() < (bf16 - exact).norm() / 3


def test_streams_in_int8_at_different_places_share_a_pass(model: Model, prompts: list[Prompt]) -> None:
    generator = on_kernels(model, INT8, batch=2)
    old, young = generator.open(TINY), generator.open(replace(TINY, seed=6))
    roll(generator, old, 2, {0: prompts[0]})
    generator.set_prompt(young, prompts[1])
    alone = on_kernels(model, INT8)
    wanted = [restore(alone, take_exact(generator, old)).stream, alone.open(young.config)]
    alone.set_prompt(wanted[1], prompts[1])
    for shared, single in zip(generator.generate([old, young]), wanted, strict=True):
        assert (shared.latents - alone.generate([single])[0].latents).abs().mean() < 1e-4


def test_int8_is_forked_and_restored_with_its_scales(model: Model, prompts: list[Prompt]) -> None:
    generator = on_kernels(model, INT8)
    stream = generator.open(TINY)
    roll(generator, stream, 2, {0: prompts[0]})
    fork, elsewhere = generator.fork(stream), on_kernels(model, INT8)
    restored = restore(elsewhere, take_exact(generator, stream)).stream
    wanted = roll(generator, stream, 1, {})
    assert torch.equal(roll(generator, fork, 1, {}), wanted)
    assert torch.equal(roll(elsewhere, restored, 1, {}), wanted)
    planes = window_planes(generator.cache)
    assert planes.keys.dtype == planes.values.dtype == torch.int8
    assert raw_plane(generator.cache).dtype == torch.float32


@pytest.mark.parametrize(
    ("backends", "other", "refusal"),
    [
        (INT8_KEYS, KERNELS, "has INT8 keys and plain values, here it has plain keys and plain values"),
        (KERNELS, INT8_VALUES, "has plain keys and plain values, here it has plain keys and INT8 values"),
        (INT8, INT8_KEYS, "has INT8 keys and INT8 values, here it has INT8 keys and plain values"),
    ],
    ids=["to plain", "to INT8 values", "to INT8 keys alone"],
)
def test_only_a_light_snapshot_goes_on_in_another_format(
    model: Model, prompts: list[Prompt], backends: KernelBackends, other: KernelBackends, refusal: str
) -> None:
    generator, elsewhere = on_kernels(model, backends), on_kernels(model, other)
    stream = generator.open(TINY)
    roll(generator, stream, 1, {0: prompts[0]})
    with pytest.raises(SnapshotError, match=f"the snapshot's window {refusal}; .* a light one does not"):
        restore(elsewhere, take_exact(generator, stream))
    restored = restore(elsewhere, take_light(generator, stream)).stream
    assert bool(roll(elsewhere, restored, 1, {}).isfinite().all())


def test_streams_at_different_places_share_a_pass(model: Model, prompts: list[Prompt]) -> None:
    latents: dict[str, Tensor] = {}
    for name, generator in (
        ("plain", denoiser_for(model.transformer)),
        ("kernels", on_kernels(model, batch=2)),
    ):
        old, young = generator.open(TINY), generator.open(replace(TINY, seed=6))
        roll(generator, old, 5, {0: prompts[0]})
        generator.set_prompt(young, prompts[1])
        latents[name] = torch.cat([block.latents for block in generator.generate([old, young])])
    torch.testing.assert_close(latents["kernels"], latents["plain"], rtol=0, atol=ATOL)


def test_one_recording_serves_every_stream_at_every_fill(model: Model, prompts: list[Prompt]) -> None:
    record = Recordings()
    plain, graphed = on_kernels(model), on_kernels(model, record=record)
    wanted = roll(plain, plain.open(TINY), 5, {0: prompts[0]})
    for _ in range(2):
        assert torch.equal(roll(graphed, graphed.open(TINY), 5, {0: prompts[0]}), wanted)
    # A block's steps, and its clean pass.
    assert record.made == 2


def _heads(transformer: TransformerConfig) -> str:
    return f"{transformer.heads} heads of {transformer.head_dim}"


FITTING = dict.fromkeys(m.transformer for m in PRESETS.values() if m.transformer.dim <= WIDEST_TOKEN)


@pytest.mark.parametrize("transformer", FITTING, ids=_heads)
def test_every_preset_that_is_not_too_wide_runs_on_the_kernels(transformer: TransformerConfig) -> None:
    torch.manual_seed(1)
    network = CausalTransformer(replace(transformer, layers=1, ffn_dim=64)).eval()
    prompt = Prompt("", torch.randn(3, transformer.text_dim))
    plain, kernels = (
        roll(generator, generator.open(replace(TINY, steps=(1000,))), 1, {0: prompt})
        for generator in (
            denoiser_for(network, runner=runner)
            for runner in (EagerRunner(network), FusedRunner(network, KERNELS, None))
        )
    )
    torch.testing.assert_close(kernels, plain, rtol=0, atol=ATOL)


def test_a_transformer_that_is_too_wide_for_the_kernels_runs_without_them_alone() -> None:
    with torch.device("meta"):
        network = CausalTransformer(replace(preset("streamdiffusionv2-14b").transformer, layers=1))
    assert isinstance(select_runner(network, EAGER, graphs=False), EagerRunner)
    with pytest.raises(ConfigError, match="5120 channels, and the kernels take at most 2048; say --kernels ref"):
        select_runner(network, KERNELS, graphs=False)


def test_a_prompt_is_attended_alike_whatever_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values, queries = (torch.randn(1, tokens, 2, 32) for tokens in (70, 70, 9))
    bounds = torch.tensor([[0], [70]], dtype=torch.int32)
    kv = KVView(KVPlanes(keys.unsqueeze(1)[0], values.unsqueeze(1)[0]), bounds, max_tokens=70)
    attend = AttentionOps.of(KERNELS, keys.device).prompt_attention
    whole = attend(queries.unsqueeze(0)[0], kv, 0)
    config = SplitConfig(Tile(32, 32, warps=4), num_splits=3)
    monkeypatch.setattr("kernels.attention.window.config_for", lambda *_: config)
    assert torch.equal(attend(queries, kv, 0), whole)
    assert not torch.equal(window_attention(queries, kv, 0), whole)


def idle(backends: KernelBackends, record: Recordings | None) -> Generator:
    """Computes nothing, but loads rows and keeps recordings as if it did."""
    transformer = Idle(preset("tiny").transformer)
    generator = denoiser_for(transformer, runner=FusedRunner(transformer, backends, record))
    # Nobody writes the raw keys, which are turned all the same: numpy warns of what memory may hold by chance.
    generator.cache.raw.planes["raw_keys"].tensor.zero_()
    return generator


@pytest.mark.parametrize("attention", ["triton", "library"])
def test_recordings_do_not_grow_with_streams_or_fill(prompts: list[Prompt], attention: str) -> None:
    record = Recordings()
    generator = idle(replace(KERNELS, attention=attention), record)
    streams = [generator.open(TINY) for _ in range(3)]
    for stream in streams:
        roll(generator, stream, 6, {0: prompts[0]})
    generator.close(streams[0])
    roll(generator, generator.open(TINY), 2, {0: prompts[1]})
    assert record.made == 2


def test_a_shape_that_was_not_warmed_up_is_not_recorded_in_service(
    model: Model, prompts: list[Prompt], caplog: pytest.LogCaptureFixture
) -> None:
    record = Recordings()
    plain, graphed = on_kernels(model), on_kernels(model, record=record)
    roll(graphed, graphed.open(TINY), 1, {0: prompts[0]})
    graphed.end_warm_up()
    made = record.made
    turned = replace(TINY, height=TINY.width, width=TINY.height)
    for _ in range(2):
        wanted = roll(plain, plain.open(turned), 2, {0: prompts[0]})
        assert torch.equal(roll(graphed, graphed.open(turned), 2, {0: prompts[0]}), wanted)
    # A recache of the shape of the passes: its graph is that of the clean pass, which was not run.
    roll(graphed, graphed.open(TINY), 2, {0: prompts[0], 1: prompts[1]})
    assert record.made == made == 1
    assert [told.message for told in caplog.records].count(
        "not warmed up: its kernels are launched one by one"
    ) == 2  # fmt: skip


@pytest.mark.parametrize("record", [Recordings(), None], ids=["graphs", "no graphs"])
def test_shapes_that_nobody_warmed_up_do_not_pile_up(
    prompts: list[Prompt], record: Recordings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.runner.fused.MOST_UNRECORDED", 4)
    generator = idle(KERNELS, record)
    generator.end_warm_up()
    runner = generator.runner
    assert isinstance(runner, FusedRunner)
    for columns in range(1, 9):
        roll(generator, generator.open(replace(TINY, width=16 * columns)), 1, {0: prompts[0]})
    assert len(runner._passes) + len(runner._unrecorded) == 4


def test_graphs_and_pools_go_when_the_device_is_done_with_them(
    model: Model, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = on_kernels(model, record=Recordings())
    roll(generator, generator.open(TINY), 1, {0: prompts[0]})
    runner = generator.runner
    assert isinstance(runner, FusedRunner)
    waited: list[tuple[int, torch.device]] = []
    monkeypatch.setattr(
        "engines.runner.fused.wait_until_idle", lambda device: waited.append((len(runner._passes), device))
    )
    runner.bind(generator.cache)
    roll(generator, generator.open(TINY), 1, {0: prompts[0]})
    generator.release()
    assert waited == [(1, torch.device("cpu"))] * 2
    assert not runner._passes


def test_a_picture_may_be_turned(prompts: list[Prompt]) -> None:
    generator = idle(KERNELS, Recordings())
    shapes = [
        roll(generator, generator.open(config), 2, {0: prompts[0]}).shape[-2:]
        for config in (TINY, replace(TINY, height=TINY.width, width=TINY.height))
    ]
    assert shapes == [(2, 4), (4, 2)]


@pytest.mark.parametrize(
    ("asked", "replayed"),
    [
        ("auto", True),
        ("layernorm_modulate=reference", True),
        ("attention=library", True),
        ("attention=reference", False),
        ("qk_norm_rope=reference", False),
        ("reference", False),
    ],
)
def test_a_kernel_may_be_left_out_where_there_are_graphs(asked: str, replayed: bool) -> None:
    backends = replace(KERNELS, **parse_backends(asked))
    assert can_use_cuda_graphs(backends, torch.device("cuda")) == replayed
    assert not can_use_cuda_graphs(backends, torch.device("cpu"))


def test_graphs_are_refused_where_they_cannot_be(model: Model) -> None:
    with pytest.raises(ConfigError, match="graphs need a CUDA device"):
        select_runner(model.transformer, KERNELS, graphs=True)
    with pytest.raises(ConfigError, match="graphs need kernels that read from the device"):
        FusedRunner(model.transformer, replace(EAGER, layernorm_modulate="triton"), Recordings())

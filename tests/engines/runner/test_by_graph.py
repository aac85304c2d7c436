"""Streams denoised by graphs, beside PyTorch: every pass, over fills, prompt switches and a restore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.runtime import StageRuntime
from engines.bindings.stage_session import StageSession
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.errors import ConfigError, StreamError
from engines.export.denoiser import DenoiserCall, denoiser_calls, export_denoiser
from engines.export.graph import StageGraph
from engines.loading.model import Model
from engines.runner.by_graph import GraphRunner, call_of
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.streaming.snapshot import restore, take_light
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from tests.engines.bindings.runtimes import CPU, Watched, on_tensorrt

EXACT = 2e-5
SWITCHES = {0: 0, 2: 1, 6: 0}
"""Of prompts, before blocks: where the window is not full, and where it has rolled."""

FRAMEWISE = StreamConfig(
    block_frames=1, window_frames=2, sink_frames=1, sink="local", rope="absolute", context="noisy"
)


class Idle:
    """A runtime that computes nothing, and counts."""

    def __init__(self, graph: StageGraph) -> None:
        self.graph = graph
        self.runs = 0

    def set_address(self, name: str, address: int) -> None:
        assert address

    def run(self, stream: int) -> None:
        self.runs += 1


class FailsOnce(Watched):
    """Fails in one of its runs, with outputs half written."""

    def __init__(self, runtime: StageRuntime, number: int) -> None:
        super().__init__(runtime)
        self._number = number

    @override
    def run(self, stream: int) -> None:
        self.fails = self.runs == self._number
        super().run(stream)


class Both:
    """A generator by graphs and one by PyTorch, of one model."""

    def __init__(self, stream: StreamConfig, folder: Path) -> None:
        self.stream = replace(stream, height=32, width=48, steps=(1000, 500))
        self.model = model = Model.random(preset("tiny"), 3)
        calls = {call.name: call for call in denoiser_calls(self.stream)}
        self.graphs = [
            export_denoiser(model.transformer, call, folder / name, "", torch.float32)
            for name, call in calls.items()
        ]
        assert [call_of(graph) for graph in self.graphs] == list(calls.values())
        sessions = [StageSession(OnnxRuntime(graph, graph.path, 1), CPU) for graph in self.graphs]
        config = EngineConfig(self.stream, sessions=3, decodes=False, batch=2)
        self.by_graph = build_generator(model, config, runner=GraphRunner(model.transformer, sessions))
        self.by_torch = build_generator(model, config)
        random = torch.Generator().manual_seed(1)
        dim = model.config.transformer.text_dim
        self.prompts = [Prompt(f"prompt {n}", torch.randn(n, dim, generator=random)) for n in (5, 11)]

    def with_plan(self, session: StageSession) -> Generator:
        """A generator with one graph, all of whose other passes are PyTorch's."""
        runner = GraphRunner(self.model.transformer, [session], others=True)
        return build_generator(self.model, EngineConfig(self.stream, decodes=False), runner=runner)

    def made(self, generator: Generator, numbers: range, streams: Sequence[Stream] = ()) -> list[list[Tensor]]:
        """Latents of blocks of streams, of a new one if there are none; they are closed."""
        streams, latents = streams or [generator.open(self.stream)], list[list[Tensor]]()
        for number in numbers:
            for stream in streams if number in SWITCHES else []:
                generator.set_prompt(stream, self.prompts[SWITCHES[number]])
            latents.append([block.latents for block in generator.generate(streams)])
        for stream in streams:
            generator.close(stream)
        return latents


def assert_same(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for made, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.stack(made), torch.stack(wanted), rtol=0, atol=EXACT)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(StreamConfig(window_frames=9), tmp_path_factory.mktemp("graphs"))


def test_every_block_is_that_of_pytorch(both: Both) -> None:
    assert_same(both.made(both.by_graph, range(9)), both.made(both.by_torch, range(9)))


@pytest.mark.slow
def test_so_are_those_of_single_frames_with_noisy_keys_and_a_local_sink(tmp_path: Path) -> None:
    both = Both(FRAMEWISE, tmp_path)
    assert_same(both.made(both.by_graph, range(9)), both.made(both.by_torch, range(9)))


def test_streams_in_a_batch_are_as_alone(both: Both) -> None:
    streams = [both.by_graph.open(replace(both.stream, seed=seed)) for seed in (0, 1)]
    first = [[latents[0]] for latents in both.made(both.by_graph, range(3), streams)]
    assert_same(first, both.made(both.by_torch, range(3)))


def test_a_snapshot_of_pytorchs_goes_on_by_graphs(both: Both) -> None:
    stream = both.by_torch.open(both.stream)
    for number in range(7):
        if number in SWITCHES:
            both.by_torch.set_prompt(stream, both.prompts[SWITCHES[number]])
        both.by_torch.generate([stream])
    data = take_light(both.by_torch, stream)
    both.by_torch.close(stream)
    made, wanted = (
        both.made(generator, range(7, 9), [restore(generator, data).stream])
        for generator in (both.by_graph, both.by_torch)
    )
    assert_same(made, wanted)


def full_window(both: Both) -> StageGraph:
    return next(graph for graph in both.graphs if graph.name == DenoiserCall.of(both.stream).name)


def test_pytorch_makes_the_passes_for_which_a_card_has_no_plan(both: Both) -> None:
    watched = Watched(on_tensorrt(full_window(both)))
    by_plan = both.with_plan(StageSession(watched, CPU))
    assert_same(both.made(by_plan, range(3)), both.made(both.by_torch, range(3)))
    # Blocks 0 and 1 fill the window, and block 2 has it full: its steps and, later, its clean pass.
    assert watched.runs == len(both.stream.steps)
    assert_same(both.made(by_plan, range(9)), both.made(both.by_torch, range(9)))


@pytest.mark.parametrize("number", range(4), ids=["first step", "second step", "clean pass", "step after it"])
def test_a_pass_that_fails_leaves_the_stream_where_it_was(
    both: Both, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_plan = both.with_plan(StageSession(FailsOnce(on_tensorrt(full_window(both)), number), CPU))
    generate, failures = by_plan.generate, list[RuntimeError]()

    def made_again(streams: Sequence[Stream]) -> list[Block]:
        try:
            return generate(streams)
        except RuntimeError as error:
            failures.append(error)
            return generate(streams)

    monkeypatch.setattr(by_plan, "generate", made_again)
    assert_same(both.made(by_plan, range(5)), both.made(both.by_torch, range(5)))
    assert len(failures) == 1


def test_plans_in_16_bits_are_given_what_a_model_in_16_bits_has(both: Both, tmp_path: Path) -> None:
    transformer = Model.random(preset("tiny"), 3).transformer.to(torch.bfloat16)
    graph = export_denoiser(transformer, DenoiserCall.of(both.stream), tmp_path / "graph", "", torch.bfloat16)
    model, idle = Model.of(preset("tiny"), transformer, None, None), Idle(graph)
    runner = GraphRunner(transformer, [StageSession(idle, CPU)], others=True)
    generator = build_generator(model, EngineConfig(both.stream, decodes=False), runner=runner)
    both.made(generator, range(3))
    assert idle.runs == len(both.stream.steps)


def test_longlive_takes_eight_graphs() -> None:
    names = [call.name.removeprefix("denoiser-") for call in denoiser_calls(StreamConfig())]
    assert names == ["3-of-3", "3-of-6", "3-of-9", "3-of-12", "6-of-6", "9-of-9", "9-of-12", "12-of-12"]
    assert DenoiserCall.of(StreamConfig()) in denoiser_calls(StreamConfig())


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (StreamConfig(context="steps"), "no graphs with a window for each step"),
        (
            StreamConfig(first_block_frames=2),
            "a frame sink of 3 ends within a block; leave the denoiser",
        ),
    ],
)
def test_streams_that_graphs_cannot_make_are_refused(stream: StreamConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        denoiser_calls(stream)


def test_a_pass_without_a_graph_is_refused_by_those_there_are(both: Both) -> None:
    stream = both.by_graph.open(replace(both.stream, width=32))
    with pytest.raises(StreamError, match="no graph is for a pass over 3 of 3 latent frames of 32x32; there is"):
        both.made(both.by_graph, range(1), [stream])

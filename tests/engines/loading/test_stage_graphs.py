"""Which graphs a stage is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.config.presets import preset
from engines.errors import ConfigError
from engines.export.graph import Stage
from engines.loading.model import Model
from engines.loading.stage_graphs import decoder_calls, stage_exports, streams_of, text_lengths


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("longlive-1.3b", ["first-1", "first-3", "steady-1", "steady-3"]),
        ("causal-forcing-framewise-1.3b", ["first-1", "steady-1"]),
        ("streamdiffusionv2-1.3b", ["first-1", "first-2", "steady-1"]),
        ("pocket", ["first-1", "first-2", "first-3", "steady-1", "steady-3"]),
    ],
)
def test_a_decoder_has_graphs_for_blocks_of_every_kind_of_stream_and_for_single_frames(
    model: str, names: list[str]
) -> None:
    calls = decoder_calls(streams_of(preset(model), 32, 48))
    assert [call.name for call in calls] == [f"decoder-{name}" for name in names]
    assert {(call.height, call.width) for call in calls} == {(32, 48)}


@pytest.mark.parametrize(
    ("longest", "lengths"), [(512, (64, 128, 256, 512)), (64, (64,)), (100, (64, 100)), (40, (40,))]
)
def test_a_text_encoder_has_graphs_up_to_what_it_takes(longest: int, lengths: tuple[int, ...]) -> None:
    assert text_lengths(longest) == lengths


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("decoder", ["decoder-first-1", "decoder-first-3", "decoder-steady-1", "decoder-steady-3"]),
        ("text", ["text-64", "text-128", "text-256"]),
        ("denoiser", ["denoiser-3-of-12"]),
    ],
)
def test_graphs_are_written_one_by_one_under_their_names(stage: Stage, names: list[str], tmp_path: Path) -> None:
    config = preset("tiny-taehv")
    stream = replace(config.stream, height=32, width=48)
    exports = stage_exports(Model.random(config, 1), stage, stream, torch.float32)
    assert [export.name for export in exports] == names
    graph = exports[0].write(tmp_path / "graph")
    assert (graph.name, graph.stage, graph.recipe) == (names[0], stage, "fp32")
    assert len(graph.weights) == 64


def test_a_stage_whose_network_is_not_loaded_is_refused() -> None:
    config = preset("tiny-taehv")
    with pytest.raises(ConfigError, match="the text encoder has not been loaded"):
        stage_exports(Model.random(config, 1, networks=["codec"]), "text", config.stream, torch.float32)


def test_a_decoder_is_exported_for_all_that_its_model_makes() -> None:
    model = Model.random(preset("pocket"), 1, networks=["codec"])
    names = [export.name for export in stage_exports(model, "decoder", model.config.stream, torch.float32)]
    assert names == [call.name for call in decoder_calls(model.config.streams)]
    assert "decoder-first-2" in names

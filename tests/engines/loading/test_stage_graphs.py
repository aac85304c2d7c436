"""Which graphs a stage is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.export.graph import Stage
from engines.loading.model import Model
from engines.loading.stage_graphs import decoder_calls, stage_exports, text_lengths


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        (StreamConfig(), ["first-1", "first-3", "steady-1", "steady-3"]),
        (StreamConfig(first_block_frames=2, block_frames=1), ["first-1", "first-2", "steady-1"]),
        (StreamConfig(block_frames=1), ["first-1", "steady-1"]),
    ],
    ids=["longlive", "streamdiffusion", "framewise"],
)
def test_a_decoder_has_graphs_for_blocks_and_for_single_frames(stream: StreamConfig, names: list[str]) -> None:
    assert [call.name for call in decoder_calls(stream)] == [f"decoder-{name}" for name in names]


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

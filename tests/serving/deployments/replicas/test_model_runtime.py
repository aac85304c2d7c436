"""Stages in their threads: each is warmed up in the thread that will run it."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.errors import ConfigError
from engines.loading.model import Model
from engines.streaming.builder import EngineConfig
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.streaming.warmup import WarmupProgress
from engines.text.umt5 import UMT5Encoder
from engines.vae.taehv import TAEHV
from engines.video.input import InputEncoder
from engines.wan.transformer import CausalTransformer
from serving.config import ServerConfig
from serving.deployments.replicas import model_runtime
from serving.deployments.replicas.model_runtime import (
    build_decoder,
    build_denoising,
    build_text_encoder,
    load,
    provenance,
    streams,
)
from serving.pipeline.video_decoder import DecoderStart
from tests.support.quantized import write_pocket
from tests.support.rollouts import roll

CONFIG = ServerConfig(model="tiny-taehv", slots=2, batch=2, sizes=((32, 48),))
SIZE = replace(preset("tiny-taehv").stream, height=32, width=48)


def untold(stage: str, seconds: float) -> None:
    """Nobody asks for times."""


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """In which thread each network has run, and on what shape."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)

    def watch(network: type, method: str) -> None:
        whole = getattr(network, method)

        def watched(self: Any, first: torch.Tensor, *args: Any, **options: Any) -> Any:
            found[f"{network.__name__}.{method}"].append((threading.current_thread().name, tuple(first.shape)))
            return whole(self, first, *args, **options)

        monkeypatch.setattr(network, method, watched)

    watch(CausalTransformer, "denoise")
    watch(CausalTransformer, "write_kv")
    watch(TAEHV, "decode")
    watch(UMT5Encoder, "forward")
    return found


def test_a_replica_refuses_what_its_card_is_not_made_for_before_it_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pocket(tmp_path / "small", QuantizationConfig("int8"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    with pytest.raises(ConfigError, match="sm_100 multiplies INT8 at a small part of its rate"):
        load(ServerConfig(model="small", models_dir=tmp_path, device="cuda"))


def test_every_stage_is_warmed_up_in_the_thread_that_runs_it(
    threads: dict[str, list[tuple[str, tuple[int, ...]]]],
) -> None:
    model = load(CONFIG)
    text = build_text_encoder(model, CONFIG, untold).encoder
    pictures = build_decoder(model, CONFIG, untold).decoder
    engine, executor, *_ = build_denoising(model, CONFIG)
    generator = engine.text
    warm = {network: set(calls) for network, calls in threads.items()}
    threads.clear()

    def opened() -> Stream:
        return generator.open(SIZE)

    async def serve() -> None:
        prompt = await text.encode("a red balloon")
        stream = executor.submit(opened).result()
        latents = executor.submit(roll, generator, stream, 6, {0: prompt, 2: prompt}).result()
        await pictures.open("one", DecoderStart(0, 0, []))
        for number, block in enumerate(latents.split(3)):
            await pictures.decode("one", Block(number, block))

    asyncio.run(serve())
    assert {name for calls in warm.values() for name, _ in calls} == {"denoise_0", "decode_0", "text_0"}
    for network in ("CausalTransformer.denoise", "CausalTransformer.write_kv", "TAEHV.decode"):
        assert set(threads[network]) <= warm[network]
    assert {name for name, _ in threads["UMT5Encoder.forward"]} == {"text_0"}


def test_what_videos_are_made_with_are_the_engines_that_were_chosen() -> None:
    model = load(CONFIG, ["codec"])
    assert "engine" not in provenance(CONFIG, model).kernels
    assert provenance(CONFIG, model, "torch", "tensorrt").kernels.endswith("; decoder engine: tensorrt")


def test_what_was_merged_before_a_model_was_quantized_is_said(tmp_path: Path) -> None:
    write_pocket(tmp_path / "styled", loras=("0.5 of cafe",))
    config = ServerConfig(model="styled", models_dir=tmp_path)
    said = provenance(config, load(config, ["transformer"]))
    assert [(lora.name, lora.weight, lora.sha256) for lora in said.loras] == [("styled", 0.5, "cafe")]
    assert ("loras", "0.5 of cafe") in [(mark.name, mark.value) for mark in said.weights]


def test_declared_sizes_have_room_and_graphs(threads: dict[str, list[tuple[str, tuple[int, ...]]]]) -> None:
    large = CONFIG.model_copy(update={"sizes": ((128, 160), (32, 48))})
    assert [(s.height, s.width) for s in streams(large)] == [(64, 96), (128, 160), (32, 48)]
    engine, executor, *_ = build_denoising(load(large, ["transformer"]), large)
    for _ in range(2):
        executor.submit(engine.open, streams(large)[1]).result()
    shapes = {shape[-2:] for _, shape in threads["CausalTransformer.denoise"]}
    assert shapes == {(8, 12), (16, 20), (4, 6)}


@pytest.mark.parametrize("graphs", [False, True])
def test_passes_are_replayed_from_graphs_where_that_can_be_and_is_not_turned_off(
    graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EngineConfig] = []

    def build(model: Model, config: EngineConfig, *_: Any, **__: Any) -> None:
        asked.append(config)
        raise ConfigError("asked")

    monkeypatch.setattr(model_runtime, "can_use_cuda_graphs", lambda *_: True)
    monkeypatch.setattr(model_runtime, "build_generator", build)
    config = CONFIG.model_copy(update={"graphs": graphs})
    with pytest.raises(ConfigError, match="asked"):
        build_denoising(load(config, ["transformer"]), config)
    assert [one.graphs for one in asked] == [graphs]


def test_a_process_with_one_stage_has_one_network(threads: dict[str, list[tuple[str, tuple[int, ...]]]]) -> None:
    build_text_encoder(load(CONFIG, ["text_encoder"]), CONFIG, untold)
    build_decoder(load(CONFIG, ["codec"]), CONFIG, untold)
    generator = build_denoising(load(CONFIG, ["transformer"]), CONFIG).engine.text
    assert set(generator.identity) == {"transformer"}
    with pytest.raises(ConfigError, match="text encoder has not been loaded"):
        _ = load(CONFIG, ["codec"]).prompts


def test_pictures_are_encoded_beside_the_passes_before_room_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[tuple[int, int]] = []

    def build(
        _: object, engine: EngineConfig, beside: Sequence[Callable[[], object]], exercise: object, runner: object
    ) -> Mock:
        assert not engine.decoder_beside
        (encodes,) = beside
        encodes()
        raise InterruptedError

    monkeypatch.setattr(InputEncoder, "warm_up", lambda _, video: encoded.append((video.height, video.width)))
    monkeypatch.setattr("serving.deployments.replicas.model_runtime.build_generator", build)
    config = ServerConfig(model="pocket", slots=1, sizes=((32, 48),))
    with pytest.raises(InterruptedError):
        build_denoising(load(config, ["transformer", "codec"]), config)
    assert encoded == [(96, 160)]


def test_what_runs_beside_the_passes_runs_before_room_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def build(
        _: object, engine: EngineConfig, beside: Sequence[Callable[[], object]], exercise: object, runner: object
    ) -> Mock:
        ran.extend([str(work()) for work in beside] + [str(engine.decoder_beside)])
        return Mock()

    def warm_up(generator: object, size: object, streams: int) -> list[WarmupProgress]:
        ran.append("passes")
        return []

    monkeypatch.setattr("serving.deployments.replicas.model_runtime.build_generator", build)
    monkeypatch.setattr("serving.deployments.replicas.model_runtime.warm_up", warm_up)
    build_denoising(load(CONFIG, ["transformer"]), CONFIG, [lambda: "text", lambda: "decode"])
    assert ran == ["text", "decode", "True", "passes", "passes"]

"""How busy a text encoder says that it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from serving.config import ServerConfig
from serving.deployments.replicas import text_encoder
from serving.deployments.replicas.model_runtime import BuiltText
from serving.deployments.replicas.text_encoder import MOST_TENTHS, TextEncoderReplica
from serving.deployments.scaling.replica_stats import BusyTime
from serving.pipeline.stages import LocalTextEncoder


class Times:
    """Forgets them."""

    def stage(self, name: str, seconds: float) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_whose_device_has_failed_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.AcceleratorError("a device-side assert")

    broken: Any = type("Broken", (), {"encode": fail})()
    text = LocalTextEncoder(broken, ThreadPoolExecutor(1))
    monkeypatch.setattr(text_encoder, "load", lambda *_: None)
    monkeypatch.setattr(text_encoder, "StageTimes", Times)
    monkeypatch.setattr(text_encoder, "build_text_encoder", lambda *_: BuiltText(text, "torch"))

    async def encode() -> None:
        replica = TextEncoderReplica(ServerConfig())
        await replica.check_health()
        with pytest.raises(torch.AcceleratorError):
            await replica.encode("a red balloon")
        with pytest.raises(RuntimeError, match="the device failed: a device-side assert"):
            await replica.check_health()

    asyncio.run(encode())


def test_it_says_what_part_of_its_time_prompts_take(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Callable[[str, float], None]] = []
    clock = Clock()
    monkeypatch.setattr(text_encoder, "load", lambda *_: None)
    monkeypatch.setattr(text_encoder, "StageTimes", Times)
    monkeypatch.setattr(text_encoder, "BusyTime", lambda: BusyTime(clock))
    nothing: Any = None

    def built(model: None, config: ServerConfig, observe: Callable[[str, float], None]) -> BuiltText:
        told.append(observe)
        return BuiltText(nothing, "torch")

    monkeypatch.setattr(text_encoder, "build_text_encoder", built)
    replica = TextEncoderReplica(ServerConfig())

    async def share() -> float:
        stats = await replica.record_autoscaling_stats()
        return stats["used"] / stats["slots"]

    assert asyncio.run(share()) == 0.0
    clock.now = 60.0
    told[0]("text", 0.1 * MOST_TENTHS * 60.0)
    assert asyncio.run(share()) == pytest.approx(1.0)

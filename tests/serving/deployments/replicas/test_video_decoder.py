"""A video decoder lets go of sessions whose denoiser died, and of no others."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from serving.config import ServerConfig
from serving.deployments.replicas import video_decoder
from serving.deployments.replicas.model_runtime import BuiltDecoder
from serving.deployments.replicas.remote_stages import Latents
from serving.deployments.replicas.video_decoder import ABANDONED_S, VideoDecoderReplica
from serving.errors import SlotsFull
from serving.pipeline.stages import LocalDecoder
from serving.pipeline.video_decoder import DecoderStart


class Decoding:
    """Notes what is open: up to two sessions."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.decoder = self

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.there)

    @property
    def free(self) -> int:
        return 2 - len(self.there)

    async def open(self, key: str, start: DecoderStart) -> None:
        if self.free <= 0:
            raise SlotsFull("the decoder has 2 sessions, which is all it may have")
        self.there.add(key)

    async def close(self, key: str) -> None:
        self.there.discard(key)

    def check(self) -> None:
        pass


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    found: Any = Decoding()
    monkeypatch.setattr(video_decoder, "load", lambda *_: None)
    monkeypatch.setattr(video_decoder, "build_decoder", lambda *_: BuiltDecoder(found, "torch"))
    monkeypatch.setattr(video_decoder, "StageTimes", lambda: type("Times", (), {"stage": None}))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found: Any = Clock()
    monkeypatch.setattr(video_decoder, "time", found)
    return found


def test_what_nobody_wants_any_more_is_closed_and_the_rest_is_kept(decoding: Decoding, clock: Clock) -> None:
    async def live() -> None:
        replica = VideoDecoderReplica(ServerConfig())
        for name in ("wanted", "abandoned"):
            await replica.open(name, 0, 0, [])
        clock.now = 0.6 * ABANDONED_S
        await replica.keep(["wanted", "never opened"])
        await replica.check_health()
        assert decoding.there == {"wanted", "abandoned"}
        clock.now = 1.2 * ABANDONED_S
        await replica.check_health()

    asyncio.run(live())
    assert decoding.there == {"wanted"}


def test_one_whose_device_has_failed_is_not_well(monkeypatch: pytest.MonkeyPatch, decoding: Decoding) -> None:
    def fail(*_: object) -> None:
        raise torch.AcceleratorError("a device-side assert")

    broken: Any = type("Broken", (), {"decode": fail})()
    pictures = LocalDecoder(broken, ThreadPoolExecutor(1))
    monkeypatch.setattr(video_decoder, "build_decoder", lambda *_: BuiltDecoder(pictures, "torch"))

    async def decode() -> None:
        replica = VideoDecoderReplica(ServerConfig())
        await replica.check_health()
        with pytest.raises(torch.AcceleratorError):
            await replica.decode("one", 0, Latents.of(torch.zeros(1)), None, 0)
        with pytest.raises(RuntimeError, match="the device failed: a device-side assert"):
            await replica.check_health()

    asyncio.run(decode())


def test_it_says_what_it_holds_and_could_hold_and_sends_nobody_away_for_good(decoding: Decoding) -> None:
    async def fill() -> None:
        replica = VideoDecoderReplica(ServerConfig())
        assert await replica.record_autoscaling_stats() == {
            "used": 0, "slots": 2, "admitted": 0, "refused": 0, "start_s": pytest.approx(0.0, abs=1.0),
        }  # fmt: skip
        for name in ("one", "two"):
            await replica.open(name, 0, 0, [])
        with pytest.raises(SlotsFull) as told:
            await replica.open("three", 0, 0, [])
        assert told.value.retry_after_s is not None
        stats = await replica.record_autoscaling_stats()
        assert (stats["used"], stats["slots"], stats["admitted"]) == (2, 2, 2)

    asyncio.run(fill())

"""What goes to stages in other processes, as far as the device is concerned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from engines.device.host_copy import HostCopier
from engines.device.side_stream import record_event
from engines.streaming.state import Block
from serving.deployments.replicas.remote_stages import Latents, RemoteDecoder
from serving.deployments.routing.replica_client import Placed
from serving.media.chunk import Chunk
from serving.pipeline.video_decoder import DecoderStart
from tests.support.fake_cuda import install, on_device

CUDA = torch.device("cuda:0")


class NoReplicas:
    """Notes what would be sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def call(self, replica: str, method: str, *arguments: Any, timeout_s: float) -> Chunk:
        self.sent.append(arguments)
        return Chunk(0, 0, ())

    async def place(self, method: str, *arguments: Any) -> Placed:
        self.sent.append(arguments)
        return Placed("there", None)


def test_latents_leave_for_a_decoder_before_the_next_block_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, fleet = install(monkeypatch), NoReplicas()
    monkeypatch.setattr(
        "serving.deployments.replicas.remote_stages.ReplicaClient", lambda handle, silence_s: fleet
    )
    pictures = RemoteDecoder(None, 1.0, HostCopier(CUDA))  # type: ignore[arg-type]
    made = cuda.main.launch()
    ready = record_event(CUDA)
    made.finish()
    cuda.main.launch()
    latents = on_device(torch.ones(2, 3))

    async def send() -> None:
        await pictures.open("one", DecoderStart(4, 33, [latents], ready))
        await pictures.decode("one", Block(4, latents, ready))

    asyncio.run(send())
    (_, _, _, warm), (_, _, alone) = fleet.sent
    for sent in (alone, *warm):
        assert isinstance(sent, Latents)
        assert torch.equal(sent.tensor(), torch.ones(2, 3))

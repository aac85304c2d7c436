"""Text encoder and video decoder in processes of their own, behind Serve."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from ray.serve.handle import DeploymentHandle
from torch import Tensor
from typing_extensions import override

from engines.device.host_copy import HostCopier, HostTensor, PendingCopy
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.deployments.routing.replica_client import ReplicaClient
from serving.errors import ReplicaLost, SessionNotFound
from serving.media.chunk import Chunk
from serving.pipeline.stages import DecoderStage, TextEncoderStage
from serving.pipeline.video_decoder import DecoderStart


class Latents(NamedTuple):
    """A tensor on its way between processes, with a word about it."""

    plain: HostTensor
    text: str = ""

    @classmethod
    def of(cls, tensor: Tensor, text: str = "") -> Latents:
        """A copy of `tensor`, which is on the host."""
        return cls(HostTensor.of(tensor), text)

    def tensor(self) -> Tensor:
        """On the CPU."""
        return self.plain.tensor()


class RemoteTextEncoder(TextEncoderStage):
    """Text encoders; any of them will do, and where one is lost another one is asked."""

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float) -> None:
        self._replicas = ReplicaClient(handle, silence_s)

    @override
    async def encode(self, text: str) -> Prompt:
        encoded: Latents = (await self._replicas.place("encode", text)).answer
        return Prompt(encoded.text, encoded.tensor())


class RemoteDecoder(DecoderStage):
    """Video decoders; a session stays with the one that opened it. `copier` takes latents off the device."""

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float, copier: HostCopier) -> None:
        self._replicas = ReplicaClient(handle, silence_s)
        self._silence_s = silence_s
        self._copier = copier
        self._opened: dict[str, str] = {}

    @override
    async def open(self, key: str, start: DecoderStart) -> None:
        warm = await asyncio.to_thread(_fetched, self._copier.begin(start.warm, start.ready))
        arguments = (key, start.next_block, start.first_frame, warm)
        self._opened[key] = (await self._replicas.place("open", *arguments)).replica

    @override
    async def decode(self, key: str, block: Block) -> Chunk:
        (latents,) = await asyncio.to_thread(_fetched, self._copier.begin([block.latents], block.ready))
        try:
            chunk: Chunk = await self._call(key, "decode", block.number, latents)
        except SessionNotFound as error:
            raise ReplicaLost(f"the decoder knows nothing of the session: {error}") from error
        return chunk

    @override
    async def close(self, key: str) -> None:
        """A decoder that is lost has nothing to let go of."""
        try:
            await self._call(key, "close")
        except (ReplicaLost, SessionNotFound):
            return
        finally:
            self._opened.pop(key, None)

    async def _call(self, key: str, method: str, *arguments: Any) -> Any:
        if key not in self._opened:
            raise SessionNotFound(f"no decoder has been opened for {key}")
        return await self._replicas.call(self._opened[key], method, key, *arguments, timeout_s=self._silence_s)


def _fetched(copy: PendingCopy) -> list[Latents]:
    """Latents, once they are here; on CUDA this waits."""
    return [Latents.of(latents) for latents in copy.result()]

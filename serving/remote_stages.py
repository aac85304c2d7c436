"""Text encoder and video decoder in processes of their own, behind Serve."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from ray.serve.handle import DeploymentHandle
from torch import Tensor

from engines.device.host_copy import HostCopier, HostTensor, PendingCopy
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.chunk import Chunk
from serving.errors import ReplicaLost, SessionNotFound
from serving.fleet import Fleet
from serving.video_decoder import Place


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


class RemoteText:
    """Text encoders; any of them will do."""

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float) -> None:
        self._fleet = Fleet(handle, silence_s)

    async def encode(self, text: str) -> Prompt:
        """As the stage; where a replica is lost, another one is asked."""
        encoded: Latents = await self._fleet.anywhere("encode", text)
        return Prompt(encoded.text, encoded.tensor())


class RemotePictures:
    """Video decoders; a session stays with the one that opened it. `copier` takes latents off the device."""

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float, copier: HostCopier) -> None:
        self._fleet = Fleet(handle, silence_s)
        self._copier = copier

    async def open(self, key: str, place: Place) -> None:
        """As the stage."""
        self._fleet.forget(key)
        warm = await asyncio.to_thread(_fetched, self._copier.begin(place.warm, place.ready))
        replica: str = await self._fleet.place(key, "open", key, place.next_block, place.first_frame, warm)
        self._fleet.remember(key, replica)

    async def decode(self, key: str, block: Block) -> Chunk:
        """As the stage."""
        (latents,) = await asyncio.to_thread(_fetched, self._copier.begin([block.latents], block.ready))
        try:
            chunk: Chunk = await self._fleet.call(key, "decode", block.number, latents)
        except SessionNotFound as error:
            raise ReplicaLost(f"the decoder knows nothing of the session: {error}") from error
        return chunk

    async def close(self, key: str) -> None:
        """As the stage; a decoder that is lost has nothing to let go of."""
        try:
            await self._fleet.call(key, "close")
        except (ReplicaLost, SessionNotFound):
            return
        finally:
            self._fleet.forget(key)


def _fetched(copy: PendingCopy) -> list[Latents]:
    """Latents, once they are here; on CUDA this waits."""
    return [Latents.of(latents) for latents in copy.result()]

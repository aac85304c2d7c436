"""Text encoder and video decoder in processes of their own, behind Serve."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ray.serve.handle import DeploymentHandle
from torch import Tensor
from typing_extensions import override

from engines.device.host_copy import HostCopier, HostTensor, PendingCopy
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.background_tasks import BackgroundTasks
from serving.deployments.routing.replica_client import ReplicaClient
from serving.errors import ReplicaLost, SessionNotFound
from serving.gateway.ownership.replica_pool import TOLD_S
from serving.media.chunk import Chunk
from serving.pipeline.stages import DecoderStage, TextEncoderStage
from serving.pipeline.video_decoder import DecoderStart

KEEP_EVERY_S = 5.0
"""How often decoders are told which sessions are still wanted; those of a denoiser that died are not."""


class Latents(NamedTuple):
    """A tensor on its way between processes."""

    plain: HostTensor

    @classmethod
    def of(cls, tensor: Tensor) -> Latents:
        """A copy of `tensor`, which is on the host."""
        return cls(HostTensor.of(tensor))

    def tensor(self) -> Tensor:
        """On the CPU."""
        return self.plain.tensor()


class SentPrompt(NamedTuple):
    """A prompt on its way between processes. Only real rows travel, not the padding."""

    text: str
    rows: HostTensor
    cut_tokens: int

    @classmethod
    def of(cls, prompt: Prompt) -> SentPrompt:
        """A copy of `prompt`."""
        return cls(prompt.text, HostTensor.of(prompt.rows), prompt.cut_tokens)

    def prompt(self) -> Prompt:
        """With rows on the CPU."""
        return Prompt(self.text, self.rows.tensor(), self.cut_tokens)


class RemoteTextEncoder(TextEncoderStage):
    """Text encoders; any of them will do. Where one is lost another one is asked, and `changed` is told."""

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float, changed: Callable[[], None]) -> None:
        self._replicas = ReplicaClient(handle, "text encoder", silence_s)
        self._changed = changed

    @override
    async def encode(self, text: str) -> Prompt:
        asked = list[str]()
        sent: SentPrompt = (await self._replicas.place("encode", text, tried=asked.append)).answer
        if len(asked) > 1:
            self._changed()
        return sent.prompt()

    @override
    def check(self) -> None:
        """The replicas look after themselves."""


class _Opened(NamedTuple):
    """Where a session's decoder is, and what it is called there: a name that nothing had before."""

    replica: str
    name: str


ASKED = 3
"""Times: while replicas come and go, a request may reach another one than that which it names."""


class RemoteDecoder(DecoderStage):
    """Video decoders; a session stays with the one that opened it. `copier` takes latents off the device.

    Each opening has a name of its own. A decoder that was left because it was silent may still have the session,
    behind the blocks that another one decoded since; a request that names a replica which is gone may reach it.
    """

    def __init__(self, handle: DeploymentHandle[Any], silence_s: float, copier: HostCopier) -> None:
        self._replicas = ReplicaClient(handle, "video decoder", silence_s)
        self._silence_s = silence_s
        self._copier = copier
        self._opened: dict[str, _Opened] = {}
        self._background = BackgroundTasks()
        self._keeping: asyncio.Task[None] | None = None

    @override
    async def open(self, key: str, start: DecoderStart, *, moves: bool = False) -> None:
        warm = await asyncio.to_thread(_fetched, self._copier.begin(start.warm, start.ready))
        if self._keeping is None:
            self._keeping = self._background.start("saying which decoders are wanted", self._keep())
        before, name, tried = self._opened.get(key), f"{key}.{uuid.uuid4().hex[:8]}", list[str]()
        arguments = (name, start.next_block, start.first_frame, warm)
        try:
            placed = await self._replicas.place("open", *arguments, tried=tried.append, moves=moves)
            tried.remove(placed.replica)
            self._opened[key] = _Opened(placed.replica, name)
            if before is not None:
                self._close_later(before)
        finally:
            for replica in tried:
                self._close_later(_Opened(replica, name))

    @override
    async def decode(self, key: str, block: Block, traceparent: str | None = None) -> Chunk:
        (latents,) = await asyncio.to_thread(_fetched, self._copier.begin([block.latents], block.ready))
        unknown: SessionNotFound | None = None
        for _ in range(ASKED):
            try:
                chunk: Chunk = await self._call(key, "decode", block.number, latents, traceparent, block.lead_in)
            except SessionNotFound as error:
                unknown = error
            else:
                return chunk
        raise ReplicaLost(f"the decoder knows nothing of the session: {unknown}") from unknown

    @override
    async def close(self, key: str) -> None:
        """A decoder that is silent is told later; one that is lost has nothing to let go of."""
        if (opened := self._opened.pop(key, None)) is None:
            return
        try:
            await self._replicas.call(opened.replica, "close", opened.name, timeout_s=self._silence_s)
        except ReplicaLost:
            self._close_later(opened)

    @override
    def block_seconds(self, key: str) -> float | None:
        return None

    @override
    async def is_leaving(self, key: str) -> bool:
        opened = self._opened.get(key)
        return opened is not None and await self._replicas.is_leaving(opened.replica)

    @override
    def check(self) -> None:
        """The replicas look after themselves."""

    def _close_later(self, opened: _Opened) -> None:
        """Have a replica that is silent let go of a session once it speaks again."""

        async def close() -> None:
            with suppress(ReplicaLost):
                await self._replicas.call(opened.replica, "close", opened.name, timeout_s=TOLD_S)

        self._background.start("closing a decoder", close())

    async def _keep(self) -> None:
        """Say again and again which sessions are wanted."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            wanted: defaultdict[str, list[str]] = defaultdict(list)
            for opened in self._opened.values():
                wanted[opened.replica].append(opened.name)
            for replica, names in wanted.items():
                self._background.start("keeping decoders", self._keep_at(replica, names))

    async def _keep_at(self, replica: str, names: list[str]) -> None:
        # One that is lost is noticed by the next block.
        with suppress(ReplicaLost):
            await self._replicas.call(replica, "keep", names, timeout_s=self._silence_s)

    async def _call(self, key: str, method: str, *arguments: Any) -> Any:
        if (opened := self._opened.get(key)) is None:
            raise SessionNotFound(f"no decoder has been opened for {key}")
        return await self._replicas.work(opened.replica, method, opened.name, *arguments)


def _fetched(copy: PendingCopy) -> list[Latents]:
    """Latents, once they are here; on CUDA this waits."""
    return [Latents.of(latents) for latents in copy.result()]

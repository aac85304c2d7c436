"""What runs in the replicas that own devices: thin shells round the classes that do the work."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from engines.device.host_copy import HostCopier
from engines.streaming.state import Block
from serving.building import build_denoising, build_pictures, build_text, load, warm_up_pictures
from serving.chunk import Chunk
from serving.config import ServerConfig
from serving.denoiser import Denoiser
from serving.follower import Item, Role
from serving.logs import join_serve_logs
from serving.metrics import Metrics, StageTimes
from serving.mirrored import Opening
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.remote_stages import Latents, RemotePictures, RemoteText
from serving.stages import PictureStage, TextStage
from serving.timeline import Cue
from serving.video_decoder import Place

logger = logging.getLogger(__name__)


def _replica() -> str:
    return serve.get_replica_context().replica_id.unique_id


class TextEncoderReplica:
    """Encodes prompts; holds no session, and no other network."""

    def __init__(self, config: ServerConfig) -> None:
        join_serve_logs()
        self._text = build_text(load(config, ["text_encoder"]), StageTimes().stage)

    async def encode(self, text: str) -> Latents:
        """The rows of a prompt, and its text. Only real rows travel, not the padding."""
        prompt = await self._text.encode(text)
        logger.info("prompt encoded", extra={"rows": len(prompt.rows)})
        return Latents.of(prompt.rows, prompt.text)

    async def room(self) -> tuple[str, int]:
        """This replica, which can always encode one more prompt."""
        return _replica(), 1


class VideoDecoderReplica:
    """Decodes and encodes the sessions that are pinned to it; it has no other network."""

    def __init__(self, config: ServerConfig) -> None:
        join_serve_logs()
        self._pictures = build_pictures(load(config, ["codec"]), config, StageTimes().stage)

    async def open(self, key: str, next_block: int, first_frame: int, warm: list[Latents]) -> str:
        """Begin to decode a session here; returns the replica."""
        await self._pictures.open(key, Place(next_block, first_frame, [latents.tensor() for latents in warm]))
        logger.info("decoder opened", extra={"session": key.partition(".")[0], "block": next_block})
        return _replica()

    async def decode(self, key: str, block: int, latents: Latents) -> Chunk:
        """The chunk of a block."""
        return await self._pictures.decode(key, Block(block, latents.tensor()))

    async def close(self, key: str) -> None:
        """Let go of a session."""
        await self._pictures.close(key)

    async def room(self) -> tuple[str, int]:
        """This replica, and how many sessions it can still decode."""
        return _replica(), self._pictures.decoder.free

    async def holds(self, key: str) -> tuple[str, int]:
        """This replica, and 0 for a session that it decodes, -1 for another."""
        return _replica(), 0 if key in self._pictures.decoder.keys else -1

    def record_routing_stats(self) -> dict[str, Any]:
        """For the router."""
        return {"sessions": self._pictures.decoder.keys}


class DenoiserReplica:
    """Holds sessions. Where stages are shared it has text encoder and video decoder as well."""

    def __init__(
        self,
        config: ServerConfig,
        text: DeploymentHandle[Any] | None = None,
        pictures: DeploymentHandle[Any] | None = None,
    ) -> None:
        join_serve_logs()
        self._config = config
        self._metrics = Metrics()
        self._text: TextStage
        self._pictures: PictureStage
        if text is None or pictures is None:
            model = load(config)
            self._text = reader = build_text(model, self._metrics.stage)
            self._pictures = decoder = build_pictures(model, config, self._metrics.stage)
            beside = reader.warm_up, partial(warm_up_pictures, decoder, model, config)
            self._denoising = build_denoising(model, config, beside)
        else:
            self._text = RemoteText(text, config.silence_s)
            self._pictures = RemotePictures(pictures, config.silence_s, HostCopier(torch.device(config.device)))
            self._denoising = build_denoising(load(config, ["transformer"]), config)
        self._denoiser: Denoiser | None = None

    def _here(self) -> Denoiser:
        """The denoiser, which begins with the first call, on the event loop."""
        if self._denoiser is None:
            self._denoiser = Denoiser(
                self._denoising.generator, self._text, self._pictures, self._denoising.executor,
                slots=self._config.slots, replica=_replica(), metrics=self._metrics,
            )  # fmt: skip
            self._denoiser.start()
        return self._denoiser

    async def open(self, opening: Opening, cues: tuple[Cue, ...]) -> bytes:
        """As `Denoiser.open`."""
        return (await self._here().open(opening, cues)).SerializeToString()

    async def close(self, session_id: str) -> None:
        """As `Denoiser.close`."""
        await self._here().close(session_id)

    async def give_up(self, session_id: str, incarnation: int) -> None:
        """As `Denoiser.give_up`."""
        await self._here().give_up(session_id, incarnation)

    async def describe(self, session_id: str) -> bytes:
        """As `Denoiser.describe`."""
        return self._here().describe(session_id).SerializeToString()

    async def sessions_of(self, caller: str) -> list[bytes]:
        """As `Denoiser.sessions_of`."""
        return [session.SerializeToString() for session in self._here().sessions_of(caller)]

    async def caller_of(self, session_id: str) -> str:
        """As `Denoiser.caller_of`."""
        return self._here().caller_of(session_id)

    async def command(self, session_id: str, command: bytes) -> bytes:
        """As `Denoiser.command`."""
        return (await self._here().command(session_id, pb.Command.FromString(command))).SerializeToString()

    async def follow(
        self, session_id: str, role: str, from_frame: int | None, may_keep: bool
    ) -> AsyncGenerator[Item]:
        """As `Denoiser.follow`."""
        async with aclosing(self._here().follow(session_id, Role(role), from_frame, may_keep=may_keep)) as items:
            async for item in items:
                yield item

    async def save(self, session_id: str) -> tuple[bytes, bytes | None]:
        """As `Denoiser.save`."""
        saved = await self._here().save(session_id)
        return saved.session.SerializeToString(), saved.stream

    async def fork(self, session_id: str, caller: str, frame: int | None) -> bytes:
        """As `Denoiser.fork`."""
        return (await self._here().fork(session_id, caller, frame)).SerializeToString()

    async def set_recording(self, session_id: str, name: str) -> None:
        """As `Denoiser.set_recording`."""
        self._here().set_recording(session_id, name)

    async def end_sessions(self) -> int:
        """End all sessions, as the server is to stop; returns how many."""
        ids = self._here().ids
        for session_id in ids:
            await self._here().close(session_id)
        return len(ids)

    async def room(self) -> tuple[str, int]:
        """This replica, and its free slots."""
        return _replica(), self._here().free

    async def holds(self, session_id: str) -> tuple[str, int]:
        """This replica, and the incarnation of a session that it holds, or -1."""
        return _replica(), self._here().holds(session_id)

    def record_routing_stats(self) -> dict[str, Any]:
        """For the router."""
        return {"sessions": () if self._denoiser is None else self._denoiser.ids}

    async def check_health(self) -> None:
        """Raise if no block would be made any more."""
        self._here().check()

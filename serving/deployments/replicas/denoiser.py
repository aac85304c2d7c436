"""The replica of the denoiser: a thin shell round `serving.worker.denoiser.Denoiser`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import torch
from ray.serve.handle import DeploymentHandle

from engines.device.host_copy import HostCopier
from serving.config import ServerConfig
from serving.deployments.replicas.identity import this_replica
from serving.deployments.replicas.model_runtime import (
    build_decoder,
    build_denoising,
    build_text_encoder,
    load,
    warm_up_decoder,
)
from serving.deployments.replicas.remote_stages import RemoteDecoder, RemoteTextEncoder
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import DenoiserMetrics
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import DecoderStage, TextEncoderStage
from serving.replication.messages import Item, ResumeState, Role, SessionSpec
from serving.timeline.cue import Cue
from serving.worker.denoiser import Denoiser

logger = logging.getLogger(__name__)


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
        self._metrics = DenoiserMetrics()
        self._text: TextEncoderStage
        self._decoder: DecoderStage
        if text is None or pictures is None:
            model = load(config)
            self._text = reader = build_text_encoder(model, self._metrics.stage)
            self._decoder = decoder = build_decoder(model, config, self._metrics.stage)
            beside = reader.warm_up, partial(warm_up_decoder, decoder, model, config)
            self._denoising = build_denoising(model, config, beside)
        else:
            self._text = RemoteTextEncoder(text, config.silence_s)
            self._decoder = RemoteDecoder(pictures, config.silence_s, HostCopier(torch.device(config.device)))
            self._denoising = build_denoising(load(config, ["transformer"]), config)
        self._denoiser: Denoiser | None = None

    def _here(self) -> Denoiser:
        """The denoiser, which begins with the first call, on the event loop."""
        if self._denoiser is None:
            self._denoiser = Denoiser(
                self._denoising.generator, self._text, self._decoder, self._denoising.executor,
                slots=self._config.slots, replica=this_replica(), metrics=self._metrics,
            )  # fmt: skip
            self._denoiser.start()
        return self._denoiser

    async def open(self, spec: SessionSpec, cues: tuple[Cue, ...], resume: ResumeState | None = None) -> bytes:
        return (await self._here().open(spec, cues, resume)).SerializeToString()

    async def close(self, session_id: str) -> None:
        await self._here().close(session_id)

    async def give_up(self, session_id: str, epoch: int) -> None:
        await self._here().give_up(session_id, epoch)

    async def describe(self, session_id: str) -> bytes:
        return self._here().describe(session_id).SerializeToString()

    async def sessions_of(self, caller: str) -> list[bytes]:
        return [session.SerializeToString() for session in self._here().sessions_of(caller)]

    async def caller_of(self, session_id: str) -> str:
        return self._here().caller_of(session_id)

    async def command(self, session_id: str, command: bytes, steers: bool = True) -> bytes:
        receipt = await self._here().command(session_id, pb.Command.FromString(command), steers=steers)
        return receipt.SerializeToString()

    async def subscribe(
        self,
        session_id: str,
        role: str,
        from_frame: int | None,
        may_keep: bool,
        client_id: str = "",
        reattach: bool = False,
    ) -> AsyncGenerator[Item]:
        items = self._here().subscribe(
            session_id, Role(role), from_frame, may_keep=may_keep, client_id=client_id, reattach=reattach
        )
        async with aclosing(items):
            async for item in items:
                yield item

    async def save(self, session_id: str) -> tuple[bytes, bytes | None]:
        saved = await self._here().save(session_id)
        return saved.session.SerializeToString(), saved.stream

    async def fork(self, session_id: str, caller: str, frame: int | None) -> bytes:
        return (await self._here().fork(session_id, caller, frame)).SerializeToString()

    async def set_recording(self, session_id: str, name: str) -> None:
        self._here().set_recording(session_id, name)

    async def end_sessions(self) -> int:
        """End all sessions, as the server is to stop; returns how many."""
        ids = self._here().ids
        for session_id in ids:
            await self._here().close(session_id)
        return len(ids)

    async def room(self) -> tuple[str, int]:
        """This replica, and its free slots."""
        return this_replica(), self._here().free

    async def holds(self, session_id: str) -> tuple[str, int]:
        """This replica, and the epoch of a session that it holds, or -1."""
        return this_replica(), self._here().holds(session_id)

    def record_routing_stats(self) -> dict[str, Any]:
        """For the router."""
        return {"sessions": () if self._denoiser is None else self._denoiser.ids}

    async def check_health(self) -> None:
        """Raise if no block would be made any more."""
        self._here().check()

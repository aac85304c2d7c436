"""The replica of the denoiser: a thin shell round `serving.worker.denoiser.Denoiser`."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import torch
from ray.serve.handle import DeploymentHandle

from engines.device.host_copy import HostCopier
from engines.loading.model import Network
from serving.config import ServerConfig
from serving.deployments.replicas.identity import this_replica
from serving.deployments.replicas.measured_capacity import measured_capacity
from serving.deployments.replicas.model_runtime import (
    build_decoder,
    build_denoising,
    build_text_encoder,
    load,
    provenance,
    warm_up_decoder,
)
from serving.deployments.replicas.remote_stages import RemoteDecoder, RemoteTextEncoder
from serving.deployments.routing.kv_register import KvRegister
from serving.deployments.scaling.replica_stats import ReplicaStats
from serving.deployments.telemetry.logging_config import join_serve_logs
from serving.deployments.telemetry.metrics import DenoiserMetrics
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stages import DecoderStage, TextEncoderStage
from serving.replication.leases import RenewAnswer, RenewRequest
from serving.replication.messages import (
    Departure,
    FeedItem,
    HandedOver,
    Item,
    Joined,
    Prepared,
    ResumeState,
    Role,
    SessionSpec,
)
from serving.timeline.cue import Cue
from serving.tracing.exporter import exporting_tracer
from serving.weights.quantized_model import served_model
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
        began = time.monotonic()
        self._config = config
        self._metrics = DenoiserMetrics()
        self._tracer = exporting_tracer()
        self._text: TextEncoderStage
        self._decoder: DecoderStage
        if text is None or pictures is None:
            model = load(config)
            reader, text_engine = build_text_encoder(model, config, self._metrics.stage)
            decoder, decoder_engine = build_decoder(model, config, self._metrics.stage, self._tracer)
            self._text, self._decoder = reader, decoder
            beside = reader.warm_up, partial(warm_up_decoder, decoder, model, config)
            self._denoising = build_denoising(model, config, beside)
            self._capacity = measured_capacity(config, model.model.config, self._denoising, decoder)
            self._provenance = provenance(config, model, text_engine, decoder_engine)
        else:
            self._text = RemoteTextEncoder(text, config.leases.lease_s, self._metrics.text_encoder_changed)
            self._decoder = RemoteDecoder(pictures, config.leases.lease_s, HostCopier(torch.device(config.device)))
            encoder: list[Network] = [] if served_model(config).video is None else ["codec"]
            model = load(config, ["transformer", *encoder])
            self._denoising = build_denoising(model, config)
            self._capacity = measured_capacity(config, model.model.config, self._denoising, None)
            self._provenance = provenance(config, model)
        self._denoiser: Denoiser | None = None
        self._stats = ReplicaStats.since(began)

    def _here(self) -> Denoiser:
        """The denoiser, which begins with the first call, on the event loop."""
        if self._denoiser is None:
            self._denoiser = Denoiser(
                self._denoising.engine, self._text, self._decoder, self._denoising.executor,
                slots=self._config.slots, replica=this_replica(), metrics=self._metrics, register=KvRegister(),
                leases=self._config.leases, capacity=self._capacity, provenance=self._provenance,
                replay_s=self._config.limits.replay_seconds, viewers=self._config.limits.viewers_per_session,
                restart_s=self._config.limits.restart_seconds, tracer=self._tracer,
                pictures=self._denoising.pictures, video_loop=self._config.video_loop,
                suspend_after_s=self._config.suspend_after,
            )  # fmt: skip
            self._denoiser.start()
        return self._denoiser

    async def prepare(
        self,
        attempt: str,
        spec: SessionSpec,
        cues: tuple[Cue, ...],
        resume: ResumeState | None,
        epoch: int,
        owner: str | None,
        within_s: float,
    ) -> Prepared:
        with self._stats.refusing():
            return await self._here().prepare(
                attempt, spec, cues, resume, epoch=epoch, owner=owner, within_s=within_s
            )

    async def renew(self, request: RenewRequest) -> RenewAnswer:
        return self._here().renew(request)

    async def cancel(self, attempt: str) -> None:
        self._here().cancel(attempt)

    async def drop(self, attempt: str, epoch: int) -> None:
        self._here().drop(attempt, epoch)

    async def machine(self) -> dict[str, Any]:
        return self._here().machine()

    async def hand_over(self, attempt: str, epoch: int, move: int, machine: dict[str, Any]) -> HandedOver:
        return await self._here().hand_over(attempt, epoch, move, machine)

    async def depart(self, attempt: str, epoch: int, move: int, max_bytes: int) -> Departure:
        return await self._here().depart(attempt, epoch, move, max_bytes)

    async def session_ended(self, session_id: str, epoch: int) -> None:
        self._here().session_ended(session_id, epoch)

    async def describe(self, attempt: str) -> bytes:
        return self._here().describe(attempt).SerializeToString()

    async def applied_cues(self, attempt: str, token: str, size: int) -> bytes:
        return self._here().applied_cues(attempt, token, size).SerializeToString()

    async def pending_cues(self, attempt: str, token: str, size: int) -> bytes:
        return self._here().pending_cues(attempt, token, size).SerializeToString()

    async def sessions_of(self, caller: str) -> list[bytes]:
        return [session.SerializeToString() for session in self._here().sessions_of(caller)]

    async def caller_of(self, attempt: str) -> str:
        return self._here().caller_of(attempt)

    async def command(self, attempt: str, command: bytes, steers: bool) -> bytes:
        receipt = await self._here().command(attempt, pb.Command.FromString(command), steers=steers)
        return receipt.SerializeToString()

    async def take_pictures(self, attempt: str, client_id: str, sent: list[bytes], dropped: int) -> None:
        self._here().take_pictures(attempt, client_id, [pb.Command.FromString(one) for one in sent], dropped)

    async def reports_ended(self, attempt: str, client_id: str) -> None:
        self._here().reports_ended(attempt, client_id)

    async def subscribe(
        self,
        attempt: str,
        role: str,
        from_frame: int | None,
        stream: str,
        client_id: str,
        reattach: bool,
        viewers: int,
        take: int | None,
    ) -> AsyncGenerator[Item]:
        arguments = (attempt, Role(role), from_frame, stream, client_id, reattach, viewers, take)
        async with aclosing(self._here().subscribe(*arguments)) as items:
            async for item in items:
                yield item

    async def join_viewers(self, attempt: str, stream: str, viewers: int, from_frame: int | None) -> Joined:
        return self._here().join_viewers(attempt, stream, viewers, from_frame)

    async def set_viewers(self, attempt: str, stream: str, viewers: int) -> None:
        self._here().set_viewers(attempt, stream, viewers)

    async def feed(self, attempt: str, manager: str) -> AsyncGenerator[FeedItem]:
        async with aclosing(self._here().feed(attempt, manager)) as items:
            async for item in items:
                yield item

    async def acknowledge(self, attempt: str, number: int) -> None:
        self._here().acknowledge(attempt, number)

    async def save(self, attempt: str, max_bytes: int) -> tuple[bytes, bytes | None]:
        saved = await self._here().save(attempt, max_bytes)
        return saved.session.SerializeToString(), saved.stream

    async def fork(
        self, attempt: str, new_attempt: str, session_id: str, caller: str, frame: int | None
    ) -> Prepared:
        with self._stats.refusing():
            return await self._here().fork(attempt, new_attempt, session_id, caller, frame)

    async def begin_recording(self, attempt: str, name: str, asked_by: str) -> str:
        return await self._here().begin_recording(attempt, name, asked_by)

    async def stop_recording(self, attempt: str, asked_by: str) -> str:
        return await self._here().stop_recording(attempt, asked_by)

    async def end_recording(self, attempt: str, ended: bytes) -> None:
        await self._here().end_recording(attempt, pb.Recording.FromString(ended))

    async def end_sessions(self) -> int:
        return await self._here().end_sessions()

    async def room(self) -> int:
        """Its free slots."""
        return self._here().free

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `by_slots`: its sessions, and how many it could have."""
        return self._stats.report(**self._here().slot_report._asdict())

    async def check_health(self) -> None:
        """Raise if no block would be made any more."""
        self._here().check()

"""What runs in the replicas that own devices: thin shells round the classes that do the work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from engines.config.presets import preset
from engines.device.side_stream import SideStream
from engines.runner.selection import can_use_cuda_graphs
from engines.runner.warmup import warm_up
from engines.streaming.builder import EngineConfig, build_generator
from engines.streaming.generator import Generator
from engines.vae.frame_decoder import FrameDecoder
from engines.vae.protocol import use_fused_ops
from serving.catalog import models_folder
from serving.chunk import Chunk
from serving.config import DTYPES, ServerConfig
from serving.denoiser import Denoiser
from serving.encoder import ChunkEncoder, chosen
from serving.follower import Item, Role
from serving.loading import OpenedModel, open_model
from serving.logs import join_serve_logs
from serving.metrics import Metrics
from serving.mirrored import Opening
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.remote_stages import Latents, RemotePictures, RemoteText
from serving.stages import LocalPictures, LocalText, PictureStage, TextStage, encode_text
from serving.timeline import Cue
from serving.video_decoder import Place, VideoDecoder

logger = logging.getLogger(__name__)


def _replica() -> str:
    return serve.get_replica_context().replica_id.unique_id


def _loaded(config: ServerConfig) -> OpenedModel:
    """The model on this replica's device, in its kernels."""
    join_serve_logs()
    # Ray sets the threads of a replica by its CPUs, one if nothing is said.
    torch.set_num_threads(config.threads)
    folder = models_folder(None if config.models_dir is None else Path(config.models_dir))
    return open_model(config.model, folder, torch.device(config.device), DTYPES[config.dtype], config.codec)


def _decoder(model: OpenedModel, config: ServerConfig) -> VideoDecoder:
    use_fused_ops(model.model.vae, config.backends)
    encoder = chosen(config.encoder, graphics=config.device == "cuda")
    logger.info("video encoder", extra={"encoder": encoder, "asked": config.encoder})
    decoding = FrameDecoder(model.model.vae, SideStream(torch.device(config.device)))
    # One session may be open twice for a moment, while it moves or is reset.
    return VideoDecoder(decoding, partial(ChunkEncoder, codec=encoder), 2 * config.slots * config.denoisers)


class TextEncoderReplica:
    """Encodes prompts; holds no session."""

    def __init__(self, config: ServerConfig) -> None:
        self._prompts = _loaded(config).prompts
        self._executor = ThreadPoolExecutor(1, "text")

    async def encode(self, text: str) -> Latents:
        """The rows of a prompt, and its text. Only real rows travel, not the padding."""
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._executor, encode_text, self._prompts, text)
        logger.info("prompt encoded", extra={"rows": len(prompt.rows)})
        return Latents.of(prompt.rows, prompt.text)

    async def room(self) -> tuple[str, int]:
        """This replica, which can always encode one more prompt."""
        return _replica(), 1


class VideoDecoderReplica:
    """Decodes and encodes the sessions that are pinned to it."""

    def __init__(self, config: ServerConfig) -> None:
        self._decoder = _decoder(_loaded(config), config)
        self._device = torch.device(config.device)
        self._executor = ThreadPoolExecutor(1, "decode")

    async def open(self, key: str, next_block: int, first_frame: int, warm: list[Latents]) -> str:
        """Begin to decode a session here; returns the replica."""
        place = Place(next_block, first_frame, [latents.tensor(self._device) for latents in warm])
        await self._run(partial(self._decoder.open, key, place))
        logger.info("decoder opened", extra={"session": key.partition(".")[0], "block": next_block})
        return _replica()

    async def decode(self, key: str, block: int, latents: Latents) -> Chunk:
        """The chunk of a block."""
        chunk: Chunk = await self._run(partial(self._decoder.decode, key, block, latents.tensor(self._device)))
        return chunk

    async def close(self, key: str) -> None:
        """Let go of a session."""
        await self._run(partial(self._decoder.close, key))

    async def room(self) -> tuple[str, int]:
        """This replica, and how many sessions it can still decode."""
        return _replica(), self._decoder.free

    async def holds(self, key: str) -> tuple[str, int]:
        """This replica, and 0 for a session that it decodes, -1 for another."""
        return _replica(), 0 if key in self._decoder.keys else -1

    def record_routing_stats(self) -> dict[str, Any]:
        """For the router."""
        return {"sessions": self._decoder.keys}

    async def _run(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class DenoiserReplica:
    """Holds sessions. Where stages are shared it has text encoder and video decoder as well."""

    def __init__(
        self,
        config: ServerConfig,
        text: DeploymentHandle[Any] | None = None,
        pictures: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._config = config
        model = _loaded(config)
        stream = preset(config.model).stream
        self._generator = _generator(model, config)
        for progress in warm_up(self._generator, stream, config.slots):
            logger.info("warming up", extra={"done": progress.done, "of": progress.of})
        self._text, self._pictures = self._stages(model, text, pictures)
        self._denoiser: Denoiser | None = None

    def _stages(
        self, model: OpenedModel, text: DeploymentHandle[Any] | None, pictures: DeploymentHandle[Any] | None
    ) -> tuple[TextStage, PictureStage]:
        if text is None or pictures is None:
            decoding = ThreadPoolExecutor(1, "decode")
            decoder = _decoder(model, self._config)
            return LocalText(model.prompts, ThreadPoolExecutor(1, "text")), LocalPictures(decoder, decoding)
        silence = self._config.silence_s
        return RemoteText(text, silence), RemotePictures(pictures, silence)

    def _here(self) -> Denoiser:
        """The denoiser, which begins with the first call, on the event loop."""
        if self._denoiser is None:
            self._denoiser = Denoiser(
                self._generator, self._text, self._pictures, slots=self._config.slots, replica=_replica(),
                metrics=Metrics(),
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


def _generator(model: OpenedModel, config: ServerConfig) -> Generator:
    graphs = can_use_cuda_graphs(config.backends, torch.device(config.device))
    logger.info("kernels", extra={"backends": str(config.backends), "graphs": graphs})
    stream = model.model.config.stream
    engine = EngineConfig(
        stream, sessions=config.slots, backends=config.backends, graphs=graphs,
        batch=min(config.batch, config.slots), decodes=False, cache_bytes=config.cache_bytes,
        # A decoder elsewhere may lag two blocks behind when it has to be rebuilt.
        kept_frames=model.model.vae.decoder_receptive_field + 2 * stream.block_frames,
    )  # fmt: skip
    return build_generator(model.model, engine, partial(model.prompts.encode, "a lighthouse"))

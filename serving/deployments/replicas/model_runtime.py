"""From a server's config to the stages of one process, each in a thread of its own and warmed up in it.

CUDA's libraries keep plans and workspaces for each thread: what another thread has warmed up would be warmed up
again by the first viewer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import NamedTuple, TypeVar

import torch

from engines.config.stream import StreamConfig
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig
from engines.device.host_copy import HostCopier
from engines.device.side_stream import SideStream
from engines.loading.lora import read_mark
from engines.loading.model import NETWORKS, Network, decoder_receptive_field
from engines.runner.selection import can_use_cuda_graphs, require_runnable
from engines.streaming.builder import EngineConfig, build_generator, generate_full_window
from engines.streaming.generator import Generator
from engines.streaming.warmup import WarmupProgress, warm_up
from engines.vae.frame_decoder import FrameDecoder
from engines.video import warmup as video_warmup
from engines.video.builder import build_input_encoder
from engines.video.generator import VideoGenerator
from engines.video.input import InputEncoder
from engines.video.stream_engine import StreamEngine
from serving.config import DTYPES, ServerConfig, StageEngine
from serving.media.encoder import ChunkEncoder, chosen
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.stage_engine import described, open_decoder, open_runner, open_text, served_stages
from serving.pipeline.stages import LocalDecoder, LocalTextEncoder
from serving.pipeline.video_decoder import VideoDecoder
from serving.tracing.tracer import UNTRACED, Tracer
from serving.weights.catalog import models_folder
from serving.weights.loader import INT8_TEXT, OpenedModel, open_model
from serving.weights.quantized_model import find_quantized, served_model
from serving.worker.pictures.input_stage import InputStage

logger = logging.getLogger(__name__)

Config = TypeVar("Config", StreamConfig, VideoStreamConfig)


class BuiltText(NamedTuple):
    """A text encoder, and the engine that runs it."""

    encoder: LocalTextEncoder
    engine: StageEngine


class BuiltDecoder(NamedTuple):
    """A video decoder, and the engine that runs it."""

    decoder: LocalDecoder
    engine: StageEngine


class Denoising(NamedTuple):
    """An engine, and the one thread that may use it; what encodes pictures in one of its own, if there are any."""

    engine: StreamEngine
    executor: ThreadPoolExecutor
    encoder: InputEncoder | None
    pictures: InputStage | None


def load(config: ServerConfig, networks: Collection[Network] = NETWORKS) -> OpenedModel:
    """What a process needs of the model, on its devices."""
    # Ray sets the threads of a replica by its CPUs, one if nothing is said.
    torch.set_num_threads(config.threads)
    folder = models_folder(config.models_dir)
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    text_device = None if config.text_device is None else torch.device(config.text_device)
    loras = config.lora_files
    if "transformer" in networks:
        require_runnable(served_model(config).transformer, config.backends, device, dtype)
    return open_model(
        config.model, folder, device, dtype, config.codec, text_device, networks, loras,
        int8_text=config.text_weights == "int8",
    )  # fmt: skip


def provenance(
    config: ServerConfig, opened: OpenedModel, text: StageEngine | None = None, decoder: StageEngine | None = None
) -> pb.Provenance:
    """What this process makes videos with, for whoever wants to make one again.

    `text` and `decoder` are the engines that run these stages, where that is known here.
    """
    stages = served_stages(config)
    marks = opened.model.identity | (INT8_TEXT if config.text_weights == "int8" else {})
    return pb.Provenance(
        longtake=version("longtake"),
        model=config.model,
        base_model=opened.model.config.name,
        codec=config.codec,
        origins=[pb.Origin(**asdict(origin)) for origin in opened.origins],
        weights=[pb.Fingerprint(name=name, value=mark) for name, mark in marks.items()],
        loras=_loras(config),
        torch=torch.__version__,
        device=config.device,
        threads=torch.get_num_threads(),
        dtype=config.dtype,
        kernels=described(
            config.backends,
            decoder or stages.decoder.likely_engine,
            text or stages.text.likely_engine,
            config.denoiser_engine,
            config.decoder_convs,
        ),
    )


def _loras(config: ServerConfig) -> list[pb.Lora]:
    """What is merged into the transformer now, or was before it was quantized."""
    quantized = find_quantized(config.model, models_folder(config.models_dir))
    merged = [read_mark(mark) for mark in quantized.header.loras] if quantized else []
    return [
        *(pb.Lora(name=file.path.name, weight=file.weight, sha256=file.sha256) for file in config.lora_files),
        *(pb.Lora(name=config.model, weight=weight, sha256=sha256) for weight, sha256 in merged),
    ]


def streams(config: ServerConfig) -> list[StreamConfig]:
    """From prompts alone, one of each size that is warmed up: the model's own, then those that are declared."""
    model = served_model(config)
    return [] if model.needs_video else _sized(config, model.stream)


def video_streams(config: ServerConfig) -> list[VideoStreamConfig]:
    """The same of those that restyle a video."""
    video = served_model(config).video
    return [] if video is None else _sized(config, replace(video, loop="plain"))


def _sized(config: ServerConfig, own: Config) -> list[Config]:
    sizes = config.served_sizes((own.height, own.width))
    return [replace(own, height=height, width=width) for height, width in sizes]


def build_text_encoder(
    model: OpenedModel, config: ServerConfig, observe: Callable[[str, float], None]
) -> BuiltText:
    """The text encoder."""
    opened = open_text(model.prompts, model.model.text_encoder, served_stages(config).text)
    opened.prompts.observe = partial(observe, "text")
    text = LocalTextEncoder(opened.prompts, ThreadPoolExecutor(1, "text"))
    text.warm_up()
    return BuiltText(text, opened.engine)


def build_decoder(
    model: OpenedModel,
    config: ServerConfig,
    observe: Callable[[str, float], None],
    tracer: Tracer = UNTRACED,
) -> BuiltDecoder:
    """The video decoder."""
    choice = served_stages(config).decoder
    opened = open_decoder(model.model.vae, choice, config.backends)
    encoder = chosen(config.encoder, graphics=config.device == "cuda")
    logger.info("video encoder", extra={"encoder": encoder, "asked": config.encoder})
    device = torch.device(config.device)
    decoding = FrameDecoder(opened.decoder, SideStream(device), HostCopier(device))
    # One session may be open twice for a moment, while it moves or is reset.
    sessions = config.decoder_slots or 2 * config.slots * config.denoisers
    decoder = VideoDecoder(decoding, partial(ChunkEncoder, codec=encoder), sessions, observe, tracer)
    pictures = LocalDecoder(decoder, ThreadPoolExecutor(1, "decode"))
    warm_up_decoder(pictures, model, config)
    return BuiltDecoder(pictures, opened.engine)


def warm_up_decoder(pictures: LocalDecoder, model: OpenedModel, config: ServerConfig) -> None:
    """Decode blocks of every size that is warmed up; returns when that is done."""
    pictures.warm_up(
        [*streams(config), *video_streams(config)], model.model.config.vae.latent_channels, DTYPES[config.dtype]
    )


def build_denoising(
    model: OpenedModel, config: ServerConfig, beside: Sequence[Callable[[], object]] = ()
) -> Denoising:
    """The generator; `beside` it may run on the same device what its sessions need as well.

    With any of that, decoders are counted among what sessions keep.
    """
    executor = ThreadPoolExecutor(1, "denoise")
    encoder = None
    if served_model(config).video is not None:
        encoder = build_input_encoder(model.model)
    engine = executor.submit(_warm_engine, model, config, encoder, beside).result()
    pictures = None if encoder is None else InputStage(encoder, ThreadPoolExecutor(1, "pictures"))
    if pictures is not None:
        pictures.warm_up(video_streams(config))
    return Denoising(engine, executor, encoder, pictures)


def _warm_engine(
    model: OpenedModel,
    config: ServerConfig,
    encoder: InputEncoder | None,
    beside: Sequence[Callable[[], object]],
) -> StreamEngine:
    generator = _generator(model, config, encoder, beside)
    video = None if encoder is None else VideoGenerator(generator)
    for size in streams(config):
        for progress in warm_up(generator, size, config.slots):
            _log_warm_up(size, progress)
    for stream in video_streams(config):
        assert encoder is not None
        assert video is not None
        for progress in video_warmup.warm_up(video, encoder, stream, config.slots):
            _log_warm_up(stream, progress)
    generator.end_warm_up()
    return StreamEngine(generator, video)


def _log_warm_up(stream: AnyStreamConfig, progress: WarmupProgress) -> None:
    extra = {"size": f"{stream.height}x{stream.width}", "done": progress.done, "of": progress.of}
    logger.info("warming up", extra=extra)


def _generator(
    model: OpenedModel,
    config: ServerConfig,
    encoder: InputEncoder | None,
    beside: Sequence[Callable[[], object]],
) -> Generator:
    graphs = config.graphs and can_use_cuda_graphs(config.backends, torch.device(config.device))
    logger.info("kernels", extra={"backends": str(config.backends), "graphs": graphs})
    networks, text, videos = model.model.config, streams(config), video_streams(config)
    video = max(videos, key=_tokens, default=None)
    largest = max(text, key=_tokens, default=None) or video
    assert largest is not None
    engine = EngineConfig(
        largest, sessions=config.slots, backends=config.backends, graphs=graphs,
        batch=min(config.batch, config.slots), decodes=False, decoder_beside=bool(beside),
        cache_bytes=config.cache_bytes, video=video,
        # A decoder elsewhere may lag two blocks behind when it has to be rebuilt.
        kept_frames=decoder_receptive_field(networks.vae) + 2 * largest.block_frames,
    )  # fmt: skip

    def exercise(generator: Generator, config: EngineConfig) -> None:
        if text:
            generate_full_window(generator, config)
        if encoder is not None and video is not None:
            # The most rows that streams of any loop have in a pass.
            batched = replace(video, loop="batch")
            video_warmup.restyle_full_window(VideoGenerator(generator), encoder, batched, config.batch)

    runner = open_runner(model.model.transformer, served_stages(config).denoiser)
    if encoder is None or video is None:
        return build_generator(model.model, engine, beside, exercise, runner=runner)
    # Pictures are encoded in a thread of their own, beside the passes.
    encodes = partial(encoder.warm_up, video)
    return build_generator(model.model, engine, (*beside, encodes), exercise, runner=runner)


def _tokens(stream: AnyStreamConfig) -> int:
    return stream.frame_tokens

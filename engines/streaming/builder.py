"""From a model and what is asked of it to a generator on one device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from engines.cache.kv_cache import CacheLayout, CacheSize, KVCache, KVFormat, cache_size
from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig
from engines.device.conv_search import searching_convolutions
from engines.device.memory_budget import MemoryBudget, typed_out_of_memory
from engines.errors import ConfigError
from engines.loading.footprint import largest_session_bytes
from engines.loading.model import Model
from engines.runner.protocol import ModelRunner
from engines.runner.selection import kv_format_of, select_runner
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.vae.protocol import StreamingDecoder
from kernels.dispatch import EAGER, KernelBackends

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """How a model runs on one device.

    Args:
        stream: the largest stream that is to be opened.
        video: the largest one that restyles a video, where such streams may take the places of others.
        sessions: streams that are to be open at once.
        backends: what computes each op.
        graphs: replay passes from CUDA graphs.
        batch: streams that go through the network together, at most.
        decodes: whether the generator decodes latents too.
        decoder_beside: whether another part of the process decodes them on the same device, so that what decoders
            keep of the sessions counts.
        kept_frames: see `Generator`.
        cache_bytes: memory for what sessions keep; None for what the device is measured to have left, or on a CPU
            for what the sessions take.

    """

    stream: AnyStreamConfig
    sessions: int = 1
    backends: KernelBackends = EAGER
    graphs: bool = False
    batch: int = 1
    decodes: bool = True
    decoder_beside: bool = False
    kept_frames: int = 0
    cache_bytes: int | None = None
    video: VideoStreamConfig | None = None

    def __post_init__(self) -> None:
        require(self.sessions >= 1, f"sessions is {self.sessions}; it must be at least 1")
        require(
            self.cache_bytes is None or self.cache_bytes > 0,
            f"cache_bytes is {self.cache_bytes}; it must be positive",
        )


def generate_full_window(generator: Generator, config: EngineConfig) -> None:
    """All that text streams do, once: the largest pass, a recache and a decode."""
    assert isinstance(config.stream, StreamConfig)
    streams = [generator.open(config.stream) for _ in range(config.batch)]
    prompt = Prompt("", torch.ones(1, generator.config.text_dim))
    # A block more than the window holds: only then is all of it recached where blocks do not divide it.
    while streams[0].latent_frames <= config.stream.window_frames + config.stream.block_frames:
        for stream in streams:
            generator.set_prompt(stream, prompt)
        for stream, block in zip(streams, generator.generate(streams), strict=True):
            if config.decodes:
                generator.decode(stream, block)


def build_generator(
    model: Model,
    config: EngineConfig,
    beside: Sequence[Callable[[], object]] = (),
    exercise: Callable[[Generator, EngineConfig], None] = generate_full_window,
    decoder: StreamingDecoder | None = None,
    runner: ModelRunner | None = None,
) -> Generator:
    """A generator of `model` with room for the sessions of `config`.

    Without `cache_bytes`, on CUDA, all that sessions do is done once in an `exercise` before the cache is
    allocated, to see what it leaves; so is all that may run `beside` it on the device. A `decoder` decodes in the
    place of the model's own, a `runner` runs passes in the place of what `backends` say. Raises ConfigError if the
    sessions do not fit, DeviceOutOfMemory if not even that does. Make it in the thread that is to use it: CUDA's
    libraries plan for each thread by itself.
    """
    size = _cache_size(model, config, config.sessions)
    lasting = config.cache_bytes
    if lasting is None and model.transformer.device.type == "cuda":
        lasting = memory_budget(model, config, beside, exercise, decoder, runner).lasting
    if lasting is not None:
        _require_room(model, config, lasting, _kv_format(config, runner))
    runner = runner or select_runner(model.transformer, config.backends, graphs=config.graphs)
    return _generator(model, config, runner, size, decoder)


def memory_budget(
    model: Model,
    config: EngineConfig,
    beside: Sequence[Callable[[], object]] = (),
    exercise: Callable[[Generator, EngineConfig], None] = generate_full_window,
    decoder: StreamingDecoder | None = None,
    runner: ModelRunner | None = None,
) -> MemoryBudget:
    """What a CUDA device has for sessions, measured as `build_generator` says.

    Raises DeviceOutOfMemory if not even one exercise fits.
    """
    with typed_out_of_memory("one block"):
        run = partial(_exercise, model, config, exercise, decoder, runner)
        layout = CacheLayout.of(model.config.transformer, model.transformer.dtype, _kv_format(config, runner))
        kept = layout.nbytes(_cache_size(model, config, config.batch))
        return MemoryBudget.measured(model.transformer.device, run, *beside, kept=kept)


def _generator(
    model: Model, config: EngineConfig, runner: ModelRunner, size: CacheSize, decoder: StreamingDecoder | None
) -> Generator:
    layout = CacheLayout.of(model.config.transformer, model.transformer.dtype, runner.kv_format)
    return Generator(
        runner,
        (decoder or model.vae) if config.decodes else None,
        KVCache(layout, size, model.transformer.device),
        kept_frames=config.kept_frames,
        batch=config.batch,
        identity=model.identity,
    )


def _kv_format(config: EngineConfig, runner: ModelRunner | None) -> KVFormat:
    return kv_format_of(config.backends) if runner is None else runner.kv_format


def _cache_size(model: Model, config: EngineConfig, sessions: int) -> CacheSize:
    """For so many sessions, each of any kind."""
    size = cache_size(sessions, config.stream, model.config.transformer)
    if config.video is None:
        return size
    return size.at_least(cache_size(sessions, config.video, model.config.transformer))


def _exercise(
    model: Model,
    config: EngineConfig,
    exercise: Callable[[Generator, EngineConfig], None],
    decoder: StreamingDecoder | None,
    runner: ModelRunner | None,
) -> None:
    """For as many streams as may go together, in the fastest ways. Graphs keep memory: none here."""
    runner = runner or select_runner(model.transformer, config.backends, graphs=False)
    generator = _generator(model, config, runner, _cache_size(model, config, config.batch), decoder)
    with searching_convolutions(model.transformer.device):
        exercise(generator, config)
    generator.release()


def _require_room(model: Model, config: EngineConfig, lasting: int, kv_format: KVFormat) -> None:
    """Raise ConfigError unless what sessions keep fits into `lasting` bytes: runs, prompts, decoders' caches."""
    kinds = [config.stream] if config.video is None else [config.stream, config.video]
    kept = largest_session_bytes(model.config, kinds, model.transformer.dtype, kv_format)
    # A prompt can be read beside those that are followed.
    decoder = kept.decoder if config.decodes or config.decoder_beside else 0
    each, spare = sum(kept) - kept.decoder + decoder, kept.prompt
    logger.info("session memory", extra={"each": each, "lasting": lasting, "sessions": config.sessions})
    if config.sessions * each + spare > lasting:
        raise ConfigError(
            f"{config.sessions} sessions of {config.stream.height}x{config.stream.width} keep {each:,} bytes each "
            f"and {lasting:,} are left: {max(0, lasting - spare) // each} would fit"
        )

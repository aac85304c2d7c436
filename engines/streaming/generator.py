"""The generator: one model on one device. Open a stream, set its prompt, generate its next block, close it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from threading import Event

import torch
from torch import Tensor, nn

from engines.cache.kv_pool import KVPool
from engines.cache.window import WindowLayout
from engines.config.geometry import ABSOLUTE_POSITIONS
from engines.config.stream import StreamConfig
from engines.device.side_stream import SideStream
from engines.errors import ConfigError, PositionLimit, PromptError, StreamError
from engines.loading.fingerprint import fingerprint
from engines.runner.eager import EagerRunner
from engines.runner.modulation import ModulationCache
from engines.runner.protocol import ModelRunner
from engines.sampling.flow_schedule import FlowSchedule
from engines.sampling.noise import Noise, SeededNoise
from engines.sampling.noise_prefetch import NoisePrefetcher
from engines.streaming.rollout import Denoised, Rollout
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache
from engines.vae.frame_decoder import FrameDecoder
from engines.vae.protocol import StreamingVAE
from engines.wan.transformer import CausalTransformer
from kernels.attention.rope import RopeTable


def _pass_shape(stream: Stream) -> tuple[int, ...]:
    """What streams have in common that can share their passes."""
    config = stream.config
    return config.height, config.width, config.block_frames, len(config.steps)


class Generator:
    """Generates blocks of latents, and decodes them, for the streams opened on it.

    A call that raises leaves its streams able to make the same call again with the same result. Streams may be
    used in any order and mixture; calls must not overlap, except that one stream's `decode` may run beside
    `generate`.

    Args:
        transformer: the denoiser; its device and dtype are those of the streams. A CUDA device must be the current
            one, or ConfigError is raised.
        codec: decodes the latents; None where another process does.
        slab_bytes: memory that the KV slabs of all open streams may take together.
        kept_frames: latent frames that a stream keeps, where its codec and its window need fewer: a decoder in
            another process is rebuilt from them.
        batch: streams that go through the network together, if their pictures have one size. In a batch the
            last bits of a result change; at 1 a stream is bit-equal whatever runs beside it. Small pictures
            on a GPU gain by more.
        runner: runs the transformer's passes; PyTorch's own operators do if there is none
            (`engines.runner.protocol`).

    """

    def __init__(
        self,
        transformer: CausalTransformer,
        codec: StreamingVAE | None,
        *,
        slab_bytes: int,
        kept_frames: int = 0,
        batch: int = 1,
        runner: ModelRunner | None = None,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1")
        self.transformer = transformer
        self.codec = codec
        self._runner = EagerRunner(transformer) if runner is None else runner
        self._rollout = Rollout(transformer, self._runner)
        self._slabs = KVPool(
            slab_bytes, transformer.device, transformer.dtype,
            int8_keys=self._runner.int8_keys, kept=self._runner.knows_slabs, dropped=self._runner.forget,
        )  # fmt: skip
        self._batch = batch
        self._side_stream = SideStream(transformer.device)
        self._decoding = None if codec is None else FrameDecoder(codec, self._side_stream)
        self._kept_frames = kept_frames
        self._drawing = ThreadPoolExecutor(1, "noise")

    @property
    def batch(self) -> int:
        """Streams that go through the network together, at most."""
        return self._batch

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """Fingerprints of the networks: a snapshot goes on only with those it was taken from."""
        codec = self.codec
        return {
            "transformer": fingerprint(self.transformer),
            "codec": fingerprint(codec) if isinstance(codec, nn.Module) else None,
        }

    def open(self, config: StreamConfig, noise: Noise | None = None) -> Stream:
        """A new stream with nothing in it. Raises PoolFull if its slab finds no room.

        `noise` replaces the noise that follows from `config.seed`.
        """
        layout = WindowLayout.of(self.transformer.config, config)
        schedule = FlowSchedule(config.steps, config.shift)
        noise = SeededNoise(config.seed) if noise is None else noise
        return Stream(
            config=config,
            noise=noise,
            noise_prefetcher=self._noise_prefetcher(noise, config),
            grid=RopeTable(config.rows, config.columns, layout.head_dim, self.transformer.device),
            schedule=schedule,
            modulations=ModulationCache(self.transformer, schedule),
            recent=deque(maxlen=self._kept_blocks(config)),
            decoder=None if self._decoding is None else self._decoding.empty_cache(),
            slab=self._slabs.take(layout),
        )

    @torch.inference_mode()
    def set_prompt(self, stream: Stream, prompt: Prompt) -> None:
        """Put `prompt` in force from the stream's next block on.

        Past the first block that one begins with the KV recache: the window's keys and values are recomputed
        under the new prompt. Raises PromptError if the embedding does not fit the model.
        """
        stream.require_open()
        taken, text_len = self.transformer.config.text_dim, self.transformer.config.text_len
        if prompt.rows.shape[1] != taken or prompt.rows.shape[0] > text_len:
            raise PromptError(
                f"prompt embedding {list(prompt.rows.shape)} does not fit: at most {text_len} rows of {taken}"
            )
        stream.use_prompt(prompt, self._rollout.read_prompt(prompt))

    @torch.inference_mode()
    def generate(self, streams: Sequence[Stream], cancelled: Event | None = None) -> list[Block]:
        """The next block of each of `streams`, in their order.

        Its clean pass is left for later, so that pictures need not wait for it: see `write_context`. Raises
        Cancelled between two passes once `cancelled` is set; no stream has advanced then, nor after any other
        error.

        On CUDA the passes are only begun here, milliseconds one after the other: `cancelled` is seen before they
        are, and what has been begun is still run. Nothing here waits for them either. A caller that does not
        `decode` must wait for `Block.ready`, or it runs ahead of the device without end.
        """
        for stream in streams:
            _require_ready(stream)
        if len({id(stream) for stream in streams}) != len(streams):
            raise StreamError("a stream is named twice; its blocks come one after the other")
        self.write_context(streams)
        self._recache([stream for stream in streams if stream.recache_due])
        made: dict[int, Denoised] = {}
        for group in self._groups(streams):
            made |= zip(map(id, group), self._rollout.denoise(group, cancelled), strict=True)
        ready = self._side_stream.record_event()
        return [stream.append(*made[id(stream)], ready) for stream in streams]

    @torch.inference_mode()
    def write_context(self, streams: Sequence[Stream]) -> None:
        """Run the clean passes that are due; `generate` does it where nobody found the time before.

        A clean pass gives a block the keys and values that later blocks see. Where a recache is due there is
        nothing to do: it replaces them.
        """
        for group in self._groups([s for s in streams if s.context_due and not s.recache_due]):
            self._rollout.clean(group)
            for stream in group:
                stream.context_written()

    @torch.inference_mode()
    def decode(self, stream: Stream, block: Block) -> Tensor:
        """Pictures of `block`, the stream's next undecoded one: [frames, height, width, 3] uint8 on the CPU.

        On CUDA this waits until they have arrived, beside whatever has been begun since the block was: its clean
        pass and the next block can be on their way.
        """
        stream.require_open()
        if self._decoding is None or stream.decoder is None:
            raise StreamError("this generator has no codec; decode where there is one")
        if block.number != stream.decoded_blocks:
            raise StreamError(f"block {block.number} is not the next to decode; {stream.decoded_blocks} is")
        pictures, stream.decoder = self._decoding.decode(block.latents, stream.decoder, block.ready)
        stream.decoded_blocks += 1
        return pictures

    def fork(self, stream: Stream) -> Stream:
        """A second stream in the same state, to go on by itself. Raises PoolFull if its slab finds no room."""
        stream.require_open()
        fork = replace(
            stream,
            noise_prefetcher=self._noise_prefetcher(stream.noise, stream.config),
            slab=self._slabs.take(stream.slab.layout),
            recent=stream.recent.copy(),
            sink_passes=stream.sink_passes.copy(),
            log=stream.log.copy(),
        )
        try:
            fork.slab.copy_(stream.slab)
        except BaseException:
            self.close(fork)
            raise
        return fork

    @torch.inference_mode()
    def rebuild(self, stream: Stream) -> None:
        """Rebuild slab and decoder from what a light snapshot holds, as one more event in the stream's log.

        The passes that wrote the sink are made again, a KV recache under the present prompt becomes due, and
        the decoder is warmed up with the last latents. From there on the stream differs from what it would
        have been, as it does after a prompt switch.
        """
        stream.require_open()
        stream.require_decoded()
        if stream.blocks == 0:
            return
        stream.require_prompt()
        for call in stream.permanent_sink_passes:
            self._rollout.replay_sink_pass(stream, call)
        stream.rebuilt(self._warm_decoder(stream))

    def close(self, stream: Stream) -> None:
        """Give the stream's memory back. Closing it again does nothing."""
        if not stream.closed:
            self._slabs.give_back(stream.slab)
            stream.close()

    def _noise_prefetcher(self, noise: Noise, config: StreamConfig) -> NoisePrefetcher:
        transformer = self.transformer
        shape, pinned = config.latent_shape(transformer.config.latent_channels), transformer.device.type == "cuda"
        return NoisePrefetcher(noise, len(config.steps), shape, transformer.dtype, self._drawing, pinned=pinned)

    def _recache(self, streams: Sequence[Stream]) -> None:
        def shape(stream: Stream) -> tuple[int, ...]:
            return *_pass_shape(stream), len(self._rollout.recache_placement(stream).slots)

        for group in self._groups(streams, shape):
            for stream, sink_pass in zip(group, self._rollout.recache(group), strict=True):
                stream.recached(sink_pass)

    def _groups(
        self, streams: Sequence[Stream], shape: Callable[[Stream], tuple[int, ...]] = _pass_shape
    ) -> Iterator[list[Stream]]:
        """Streams of one `shape`, which can share a pass, at most `batch` at a time."""
        for _, group in groupby(sorted(streams, key=shape), key=shape):
            alike = list(group)
            for start in range(0, len(alike), self._batch):
                yield alike[start : start + self._batch]

    def _kept_blocks(self, config: StreamConfig) -> int:
        """Blocks whose latents a stream keeps."""
        memory = 0 if self._decoding is None else self._decoding.receptive_field
        return max(config.window_blocks, math.ceil(max(memory, self._kept_frames) / config.block_frames))

    def _warm_decoder(self, stream: Stream) -> ConvCache | None:
        """The decoder's cache after the last latents, from nothing."""
        if self._decoding is None:
            return None
        blocks = math.ceil(self._decoding.receptive_field / stream.config.block_frames)
        return self._decoding.rebuild_cache(list(stream.recent)[-blocks:])


def _require_ready(stream: Stream) -> None:
    """Raise unless the stream can make its next block."""
    stream.require_open()
    stream.require_prompt()
    end = (stream.blocks + 1) * stream.config.block_frames
    if stream.config.rope == "absolute" and end > ABSOLUTE_POSITIONS:
        raise PositionLimit(
            f"block {stream.blocks} would end at latent frame {end}, beyond the {ABSOLUTE_POSITIONS} positions of "
            "absolute RoPE; open the stream with rope='relative', which has no end"
        )

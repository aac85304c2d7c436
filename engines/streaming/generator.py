"""The generator: one model on one device. Open a stream, set its prompt, generate its next block, close it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event

import torch
from torch import Tensor

from engines.cache.kv_cache import KVCache
from engines.cache.prompt_kv import PromptKV
from engines.cache.window import window_policy
from engines.config.base_stream import BaseStreamConfig
from engines.config.geometry import ABSOLUTE_POSITIONS
from engines.config.stream import StreamConfig
from engines.device.host_copy import HostCopier
from engines.device.memory_budget import typed_out_of_memory
from engines.device.side_stream import SideStream
from engines.errors import ConfigError, PositionLimit, PromptError, StreamError
from engines.runner.protocol import ModelRunner
from engines.sampling.flow_schedule import FlowSchedule
from engines.sampling.noise import Noise, SeededNoise
from engines.sampling.noise_prefetch import NoisePrefetcher
from engines.streaming.decoding import decode_block
from engines.streaming.rollout import Denoised, Rollout
from engines.streaming.shared_passes import require_distinct, share_passes
from engines.streaming.state import Block, RecentLatents
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache
from engines.vae.frame_decoder import FrameDecoder
from engines.vae.protocol import StreamingDecoder


class Generator:
    """Generates blocks of latents, and decodes them, for the streams opened on it.

    A call that raises leaves its streams able to make the same call again with the same result; every one may
    raise DeviceOutOfMemory, and has freed what it took then. Streams may be used in any order and mixture; calls
    must not overlap, except that one stream's `decode` may run beside `generate`.

    Args:
        runner: runs the passes of the denoiser; its device and dtype are those of the streams. A CUDA device must
            be the current one, or ConfigError is raised.
        vae: decodes the latents; None where another process does.
        cache: the pools from which streams take what they keep.
        kept_frames: latent frames that a stream keeps, where its VAE and its window need fewer: a decoder in
            another process is rebuilt from them.
        batch: streams that go through the network together, if their pictures have one size. In kernels the
            last bits of a result change in a batch; at 1 a stream is bit-equal whatever runs beside it. Small
            pictures on a GPU gain by more.
        identity: fingerprints of the networks: a snapshot goes on only with those it was taken from.

    """

    def __init__(
        self,
        runner: ModelRunner,
        vae: StreamingDecoder | None,
        cache: KVCache,
        *,
        kept_frames: int = 0,
        batch: int = 1,
        identity: dict[str, str] | None = None,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1")
        self.config = runner.config
        self.vae = vae
        self.cache = cache
        self.identity = identity or {}
        self.runner = runner
        runner.bind(cache)
        self._rollout = Rollout(runner, cache.prompts, cache.device)
        self._batch = batch
        self.copier = HostCopier(cache.device)
        self._side = SideStream(cache.device)
        self.decoder = None if vae is None else FrameDecoder(vae, self._side, self.copier)
        self._kept_frames = kept_frames
        self._drawing = ThreadPoolExecutor(1, "noise")

    @property
    def batch(self) -> int:
        """Streams that go through the network together, at most."""
        return self._batch

    def open(self, config: StreamConfig, noise: Noise | None = None) -> Stream:
        """A new stream with nothing in it. Raises PoolFull if it finds no room.

        `noise` replaces the noise that follows from `config.seed`.
        """
        stream = self.suspended(config, noise)
        self._take_window(stream)
        return stream

    def suspended(self, config: StreamConfig, noise: Noise | None = None) -> Stream:
        """A new stream as `suspend` would leave it: it needs no room until it is resumed."""
        noise = SeededNoise(config.seed) if noise is None else noise
        return Stream(
            config=config,
            policy=window_policy(config),
            noise=noise,
            noise_prefetcher=self.noise_prefetcher(noise, config),
            lanes=(),
            schedules=(FlowSchedule.of(config, 0), FlowSchedule.of(config, 1)),
            recent=RecentLatents(self.recent_frames(config.window_frames)),
            decoder=None,
        )

    def _take_window(self, stream: Stream) -> None:
        config = stream.config
        with typed_out_of_memory("another stream"):
            stream.lanes = self.cache.open_lanes(stream.policy, config.frame_tokens, config.lanes)
        stream.decoder = None if self.decoder is None else self.decoder.empty_cache()

    @torch.inference_mode()
    def set_prompt(self, stream: Stream, prompt: Prompt) -> None:
        """Put `prompt` in force from the stream's next block on.

        Past the first block that one begins with the KV recache: the window's keys and values are recomputed
        under the new prompt. Raises PromptError if the embedding does not fit the model, PoolFull if its keys and
        values find no room.
        """
        stream.require_window()
        before = stream.prompt_kv
        stream.use_prompt(prompt, self.take_prompt(prompt))
        if before is not None:
            self.cache.prompts.give_back(before)

    @torch.inference_mode()
    def take_prompt(self, prompt: Prompt) -> PromptKV:
        """A prompt's keys and values, for one more user. Raises as `set_prompt`."""
        taken, text_len = self.config.text_dim, self.config.text_len
        if prompt.rows.shape[1] != taken or prompt.rows.shape[0] > text_len:
            raise PromptError(
                f"prompt embedding {list(prompt.rows.shape)} does not fit: at most {text_len} rows of {taken}"
            )
        with typed_out_of_memory("a prompt's keys and values"):
            return self.cache.prompts.take(prompt, partial(self.runner.encode_prompt, prompt))

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
        require_distinct(streams)
        self.write_context(streams)
        made: dict[int, Denoised] = {}
        with typed_out_of_memory("a block"):
            for group in share_passes(
                [stream for stream in streams if stream.recache_due], _recache_shape, self._batch
            ):
                self._rollout.recache(group)
            for group in share_passes(streams, _block_shape, self._batch):
                made |= zip(map(id, group), self._rollout.denoise(group, cancelled), strict=True)
        ready = self.record_event()
        return [stream.append(*made[id(stream)], ready) for stream in streams]

    @torch.inference_mode()
    def write_context(self, streams: Sequence[Stream]) -> None:
        """Run the clean passes that are due; `generate` does it where nobody found the time before.

        A clean pass gives a block the keys and values that later blocks see. Where a recache is due there is
        nothing to do: it replaces them.
        """
        due = [stream for stream in streams if stream.context_due and not stream.recache_due]
        with typed_out_of_memory("a block's keys and values"):
            for group in share_passes(due, _context_shape, self._batch):
                self._rollout.write_context(group)

    @torch.inference_mode()
    def decode(self, stream: Stream, block: Block) -> Tensor:
        """Pictures of `block`, the stream's next undecoded one: [frames, height, width, 3] uint8 on the CPU.

        On CUDA this waits until they have arrived, beside whatever has been begun since the block was: its clean
        pass and the next block can be on their way.
        """
        return decode_block(self.decoder, stream, block)

    def fork(self, stream: Stream) -> Stream:
        """A second stream in the same state, to go on by itself. Raises PoolFull if it finds no room."""
        stream.require_window()
        with typed_out_of_memory("another stream"):
            lanes = self.cache.fork_lanes(stream.lanes)
        return replace(
            stream,
            lanes=lanes,
            noise_prefetcher=self.noise_prefetcher(stream.noise, stream.config),
            prompt_kv=None if stream.prompt_kv is None else self.cache.prompts.share(stream.prompt_kv),
            recent=stream.recent.copy(),
            sink_passes=stream.sink_passes.copy(),
            rebuilt_before=stream.rebuilt_before.copy(),
        )

    @torch.inference_mode()
    def rebuild(self, stream: Stream) -> None:
        """Rebuild window and decoder from what a light snapshot holds, as one more event in the stream's log.

        The passes that wrote the sink are made again, a KV recache under the present prompt becomes due, and
        the decoder is warmed up with the last latents. From there on the stream differs from what it would
        have been, as it does after a prompt switch.
        """
        stream.require_window()
        stream.require_decoded()
        if stream.blocks == 0:
            return
        stream.require_prompt()
        with typed_out_of_memory("a stream's sink"):
            for sink_pass in stream.permanent_sink_passes:
                self._rollout.replay_sink_pass(stream, sink_pass)
        stream.rebuilt(self.rebuilt_decoder(stream.recent))

    def suspend(self, stream: Stream) -> None:
        """Give back all memory of the stream but what a light snapshot holds, until it is resumed.

        It can be saved meanwhile, and closed. Raises StreamError while the decoder lags behind.
        """
        stream.require_window()
        stream.require_decoded()
        self._give_back(stream)
        stream.suspend()

    @torch.inference_mode()
    def resume(self, stream: Stream) -> None:
        """Have a suspended stream go on: its window is rebuilt as by `rebuild`.

        Raises PoolFull if it finds no room; it is suspended then. Raises StreamError if it is not suspended.
        """
        stream.require_open()
        if not stream.is_suspended:
            raise StreamError(f"the stream is not suspended: it can make block {stream.blocks}")
        self._take_window(stream)
        try:
            if stream.prompt is not None:
                stream.prompt_kv = self.take_prompt(stream.prompt)
            self.rebuild(stream)
        except BaseException:
            self._give_back(stream)
            stream.suspend()
            raise

    def close(self, stream: Stream) -> None:
        """Give the stream's memory back. Closing it again does nothing."""
        if not stream.closed:
            self._give_back(stream)
            stream.close()

    def _give_back(self, stream: Stream) -> None:
        for lane in stream.lanes:
            self.cache.close(lane)
        if stream.prompt_kv is not None:
            self.cache.prompts.give_back(stream.prompt_kv)

    def end_warm_up(self) -> None:
        """Record no more graphs: from now on streams are served, which none may hold up.

        Passes of a shape that has not been recorded run with their kernels launched one by one.
        """
        self.runner.end_recording()

    def release(self) -> None:
        """Let go of graphs and pools, once the device has done all that uses them. No call may follow."""
        self.runner.unbind()
        self._drawing.shutdown()
        del self.cache, self._rollout

    def noise_prefetcher(self, noise: Noise, config: BaseStreamConfig, opening: int = 0) -> NoisePrefetcher:
        """Draws the noise of a stream's blocks one ahead, for this device; it opens with block `opening`."""

        def shape(block: int) -> tuple[int, ...]:
            frames = config.blocks.frames_of(block, opening)
            return len(config.steps_of(block)), *config.latent_shape(self.config.latent_channels, frames)

        pinned = self.cache.device.type == "cuda"
        return NoisePrefetcher(noise, shape, self.cache.layout.dtype, self._drawing, pinned=pinned)

    def record_event(self) -> torch.cuda.Event | None:
        """The end of what the device has been given; None where it is not a GPU."""
        return self._side.record_event()

    def recent_frames(self, window_frames: int) -> int:
        """Latent frames that a stream keeps with such a window."""
        decoder = 0 if self.decoder is None else self.decoder.receptive_field
        return max(window_frames, decoder, self._kept_frames)

    def rebuilt_decoder(self, recent: RecentLatents) -> ConvCache | None:
        """The decoder's cache after the last latents, from nothing."""
        if self.decoder is None:
            return None
        return self.decoder.rebuild_cache(recent.last_blocks(self.decoder.receptive_field))


def _block_shape(stream: Stream) -> tuple[int, ...]:
    """What streams have in common whose next blocks can share their passes."""
    config = stream.config
    return config.height, config.width, stream.block_frames, len(stream.schedule), config.lanes


def _context_shape(stream: Stream) -> tuple[int, ...]:
    """The same for the clean passes of their last blocks."""
    return stream.config.height, stream.config.width, stream.recent.last_block().shape[0]


def _recache_shape(stream: Stream) -> tuple[int, ...]:
    """The same for their recaches."""
    frames = stream.policy.place_recache(stream.latent_frames).frames
    return stream.config.height, stream.config.width, frames, stream.config.lanes


def _require_ready(stream: Stream) -> None:
    """Raise unless the stream can make its next block."""
    stream.require_window()
    stream.require_prompt()
    end = stream.latent_frames + stream.block_frames
    if stream.config.rope == "absolute" and end > ABSOLUTE_POSITIONS:
        raise PositionLimit(
            f"block {stream.blocks} would end at latent frame {end}, beyond the {ABSOLUTE_POSITIONS} positions of "
            "absolute RoPE; open the stream with rope='relative', which has no end"
        )

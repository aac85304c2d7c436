"""The generator of video streams: open one, set its prompt, generate from its inputs, decode, close it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.kv_cache import StreamKV
from engines.cache.rolling_window import Lane, RollingWindow
from engines.config.video_stream import Loop, VideoStreamConfig
from engines.device.memory_budget import typed_out_of_memory
from engines.errors import Cancelled, StreamError
from engines.sampling.noise import Noise, SeededNoise
from engines.streaming.decoding import decode_block
from engines.streaming.generator import Generator
from engines.streaming.shared_passes import require_distinct, share_passes
from engines.streaming.state import Block, RecentLatents
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache
from engines.video.input import BlockInput
from engines.video.kept_inputs import KeptInput, KeptInputs
from engines.video.rollout import Made, Ticked, VideoRollout, is_resumed
from engines.video.stream import BatchRow, VideoStream
from kernels.slot_choice.slot_queue import LOST, put_first


class _Due(NamedTuple):
    """A stream and its next input, if it has one."""

    stream: VideoStream
    block: BlockInput | None


class VideoGenerator:
    """Generates the blocks of video streams on the device, and in the pools, of a text generator.

    A call that raises leaves its streams able to make the same call again with the same result; every one may
    raise DeviceOutOfMemory, and has freed what it took then. Streams may be used in any order and mixture; calls
    must not overlap, nor the text generator's, except that one stream's `decode` may run beside `generate`.
    """

    def __init__(self, beside: Generator) -> None:
        self.beside = beside
        self._rollout = VideoRollout(beside.runner, beside.cache.device)

    def open(self, config: VideoStreamConfig, noise: Noise | None = None, opening: int = 0) -> VideoStream:
        """A new stream with nothing in it, whose first block is `opening`. Raises PoolFull if it finds no room.

        `noise` replaces the noise that follows from `config.seed`. Raises StreamError where no later block than
        the first can open a stream.
        """
        stream = self.suspended(config, noise, opening)
        with typed_out_of_memory("another stream"):
            stream.lanes = self.beside.cache.open_lanes(stream.window, config.frame_tokens, stream.steps)
        stream.progress = _empty(stream.lanes)
        stream.decoder = self._empty_decoder()
        return stream

    def suspended(self, config: VideoStreamConfig, noise: Noise | None = None, opening: int = 0) -> VideoStream:
        """A new stream as `suspend` would leave it: it needs no room until it is resumed. Raises as `open`."""
        _require_opening(config, opening)
        noise = SeededNoise(config.seed) if noise is None else noise
        return VideoStream(
            config=config,
            window=RollingWindow.of(config),
            noise=noise,
            noise_prefetcher=self.beside.noise_prefetcher(noise, config, opening),
            lanes=(),
            progress=(),
            recent=RecentLatents(self.beside.recent_frames(config.window_frames)),
            inputs=KeptInputs(config, opening=opening),
            decoder=None,
            loop=config.loop,
            opening=opening,
            entered=opening,
            blocks=opening,
            decoded_blocks=opening,
        )

    @torch.inference_mode()
    def set_prompt(self, stream: VideoStream, prompt: Prompt) -> None:
        """Put `prompt` in force for the blocks that begin from now on; those on their way keep theirs.

        Raises PromptError if the embedding does not fit the model, PoolFull if its keys and values find no room.
        """
        stream.require_windows()
        before = stream.prompt_kv
        stream.prompt_kv = self.beside.take_prompt(prompt)
        stream.prompt = prompt
        if before is not None:
            self.beside.cache.prompts.give_back(before)

    @torch.inference_mode()
    def generate(
        self, streams: Sequence[VideoStream], inputs: Sequence[BlockInput], cancelled: Event | None = None
    ) -> list[Block | None]:
        """Begin each stream's next block, and return the block of each that has come out.

        In a plain loop that is the same one; in a stream batch it is the one that began `steps` - 1 blocks before,
        and none has come out while the rows fill up. A block that opens its stream comes out at once. Raises
        StreamError if an input is not the stream's next, Cancelled between two passes once `cancelled` is set; no
        stream has advanced then.

        On CUDA the passes are only begun here: see `Generator.generate`.
        """
        for stream, block in zip(streams, inputs, strict=True):
            stream.require_next(block)
        require_distinct(streams)
        due = [_Due(*pair) for pair in zip(streams, inputs, strict=True)]
        made: dict[int, Made] = {}
        ticked: dict[int, Ticked] = {}
        with typed_out_of_memory("a block"):
            for group in share_passes(
                [one for one in due if _is_plain(one.stream)], _plain_shape, self.beside.batch
            ):
                blocks = [one.block for one in group if one.block is not None]
                results = self._rollout.plain([one.stream for one in group], blocks, cancelled)
                made |= {id(one.stream): result for one, result in zip(group, results, strict=True)}
            ticked |= self._ticks([one for one in due if not _is_plain(one.stream)], cancelled)
        ready = self.beside.record_event()
        return [self._entered(*one, made.get(id(one.stream)), ticked.get(id(one.stream)), ready) for one in due]

    @torch.inference_mode()
    def renew_sink(self, stream: VideoStream) -> None:
        """Have the next frames take the places of the sink's, in every window.

        In a stream batch each window does so as blocks reach its step. Where they are to do so already, or to open
        the stream, nothing changes. Raises StreamError in a begun block.
        """
        stream.require_windows()
        if stream.renewing or stream.is_opening:
            return
        stream.require_between_blocks()
        ends = range(1, stream.window.sink + 1)
        for record in self._last_records(stream):
            put_first(record, ends)
        stream.renewing = True

    def lost_slots(self, stream: VideoStream) -> int:
        """How many slots of its sink the stream's queues had no room for, in all layers; waits for the device.

        Zero but where tests of a plain loop or renewals have put hundreds more in front than have been taken: see
        `kernels.slot_choice.slot_queue`.
        """
        stream.require_windows()
        return int(sum(record[:, LOST].sum() for record in self._last_records(stream)))

    @torch.inference_mode()
    def reopen(self, stream: VideoStream) -> None:
        """Have the next block open the stream anew, as if nothing had been before it; numbers go on.

        It is as long as a first one, and its pictures are `lead_in` more than a later block's. Where it is to open
        the stream already, nothing changes. Raises StreamError unless all blocks before it are out and decoded,
        and for a stream whose first block is no longer than others.
        """
        stream.require_windows()
        if stream.is_opening:
            return
        stream.require_at_rest()
        config, opening = stream.config, stream.entered
        _require_opening(config, opening)
        self._keep_rows(stream, lambda _: False)
        for lane in stream.lanes:
            self.beside.cache.clear(lane)
        stream.rows, stream.progress = (), _empty(stream.lanes)
        stream.noise_prefetcher = self.beside.noise_prefetcher(stream.noise, config, opening)
        stream.recent.clear()
        stream.inputs = KeptInputs(config, opening=opening)
        stream.decoder = self._empty_decoder()
        stream.opening, stream.position, stream.renewing = opening, 0, False

    @torch.inference_mode()
    def flush(self, stream: VideoStream) -> list[Block]:
        """The blocks that are on their way in a stream batch, finished without another input.

        Where a pass of it fails none is lost: the next flush has them all.
        """
        stream.require_windows()
        while not stream.is_empty:
            with typed_out_of_memory("a block"):
                ticked = self._ticks([_Due(stream, None)], None)[id(stream)]
            finished = self._after_tick(stream, ticked, self.beside.record_event())
            stream.flushed += [] if finished is None else [finished]
        blocks, stream.flushed = stream.flushed, []
        return blocks

    @torch.inference_mode()
    def use_loop(self, stream: VideoStream, loop: Loop) -> None:
        """Run the stream's next block in another loop. Raises StreamError while blocks are on their way."""
        stream.require_windows()
        if not stream.is_empty:
            raise StreamError(f"blocks are on their way in a stream batch; flush them before the {loop} loop")
        if loop == stream.loop:
            return
        self.leave_batch(stream)
        stream.loop = loop
        if loop == "batch" and not stream.is_opening:
            self._enter_batch(stream)

    def leave_batch(self, stream: VideoStream) -> None:
        """Give up what is on its way in a stream batch, and go on in the first window alone."""
        self._keep_rows(stream, lambda _: False)
        stream.rows = ()
        stream.progress = (stream.progress[0]._replace(left=stream.steps), *stream.progress[1:])
        stream.loop = "plain"

    @torch.inference_mode()
    def decode(self, stream: VideoStream, block: Block) -> Tensor:
        """Pictures of `block`, the stream's next undecoded one: see `Generator.decode`."""
        return decode_block(self.beside.decoder, stream, block)

    def fork(self, stream: VideoStream) -> VideoStream:
        """A second stream in the same state, to go on by itself. Raises PoolFull if it finds no room."""
        stream.require_windows()
        stream.require_between_blocks()
        with typed_out_of_memory("another stream"):
            lanes = self.beside.cache.fork_lanes(stream.lanes)
        for prompt in stream.held_prompts:
            self.beside.cache.prompts.share(prompt)
        return replace(
            stream,
            lanes=lanes,
            noise_prefetcher=self.beside.noise_prefetcher(stream.noise, stream.config, stream.opening),
            recent=stream.recent.copy(),
            inputs=stream.inputs.copy(),
            rebuilt_before=stream.rebuilt_before.copy(),
            flushed=stream.flushed.copy(),
        )

    def close(self, stream: VideoStream) -> None:
        """Give the stream's memory back. Closing it again does nothing."""
        if not stream.closed:
            self._give_back(stream)
            stream.close()

    def suspend(self, stream: VideoStream) -> None:
        """Give back all memory of the stream but what a light snapshot holds, until it is resumed.

        It can be saved meanwhile, and closed. Raises StreamError in a begun block, while the decoder lags behind,
        and before a flush that failed is repeated.
        """
        stream.require_windows()
        stream.require_between_blocks()
        stream.require_decoded()
        if stream.flushed:
            raise StreamError("a flush has failed; repeat it before the stream is suspended")
        stream.suspend(self._give_back(stream))

    def _give_back(self, stream: VideoStream) -> int:
        """How many blocks have been given up between two steps."""
        on_their_way = stream.on_their_way
        self._keep_rows(stream, lambda _: False)
        for lane in stream.lanes:
            self.beside.cache.close(lane)
        if stream.prompt_kv is not None:
            self.beside.cache.prompts.give_back(stream.prompt_kv)
        return on_their_way

    def _last_records(self, stream: VideoStream) -> Iterator[Tensor]:
        """Of the queues of the windows in use, as the last pass left them: [layers, RECORD] each."""
        in_use = 1 if stream.loop == "plain" else stream.steps
        for lane, progress in zip(stream.lanes[:in_use], stream.progress[:in_use], strict=True):
            records = self.beside.cache.state(lane, 0)["records"]
            yield records[:, progress.writes % stream.window.records]

    def _empty_decoder(self) -> ConvCache | None:
        return None if self.beside.decoder is None else self.beside.decoder.empty_cache()

    def _ticks(self, due: Sequence[_Due], cancelled: Event | None) -> dict[int, Ticked]:
        ticked: dict[int, Ticked] = {}
        for group in share_passes(due, _tick_shape, self.beside.batch):
            if cancelled is not None and cancelled.is_set():
                raise Cancelled("cancelled before a pass over the rows of a stream batch")
            results = self._rollout.tick([one.stream for one in group], [one.block for one in group])
            ticked |= {id(one.stream): result for one, result in zip(group, results, strict=True)}
        return ticked

    def _entered(
        self,
        stream: VideoStream,
        block: BlockInput | None,
        made: Made | None,
        ticked: Ticked | None,
        ready: torch.cuda.Event | None,
    ) -> Block | None:
        """The stream after a block of it has begun."""
        assert block is not None
        assert stream.prompt is not None
        frames = stream.block_frames
        if ticked is not None:
            if stream.steps > 1:
                self.beside.cache.prompts.share(stream.require_prompt_kv())
            finished = self._after_tick(stream, ticked, ready)
        else:
            assert made is not None
            stream.progress = (made.lane, *stream.progress[1:])
            stream.begun = None
            finished = stream.finish(made.latents, ready)
        stream.inputs.append(KeptInput(block, stream.position, stream.prompt, stream.renewing))
        stream.renewing = False
        opens = stream.is_opening
        stream.entered += 1
        stream.position = stream.window.next_position(stream.position + frames, stream.config.refresh_at)
        if opens and stream.loop == "batch":
            self._enter_batch(stream)
        return finished

    def _after_tick(self, stream: VideoStream, ticked: Ticked, ready: torch.cuda.Event | None) -> Block | None:
        """The stream after its rows have gone on by a step; the last one leaves."""
        if stream.rows and stream.rows[-1] is not None:
            self.beside.cache.prompts.give_back(stream.rows[-1].prompt)
        stream.rows, stream.progress = ticked.rows, ticked.progress
        return None if ticked.finished is None else stream.finish(ticked.finished, ready)

    def _enter_batch(self, stream: VideoStream) -> None:
        """Every step's window begins as the first one's is now; no block has reached a later step."""
        for lane in stream.lanes[1:]:
            self.beside.cache.copy(stream.lanes[0], lane)
        stream.progress = (stream.progress[0],) * stream.steps
        stream.rows = self._rollout.empty_rows(stream)
        for row in stream.rows:
            assert row is not None
            self.beside.cache.prompts.share(row.prompt)

    def _keep_rows(self, stream: VideoStream, kept: Callable[[BatchRow], bool]) -> None:
        """Give up all rows but those that are `kept`."""
        for row in stream.rows:
            if row is not None and not kept(row):
                self.beside.cache.prompts.give_back(row.prompt)
        stream.rows = tuple(row if row is not None and kept(row) else None for row in stream.rows)


def _require_opening(config: VideoStreamConfig, block: int) -> None:
    """Raise StreamError unless a stream can open with `block`."""
    if block > 0 and config.lead_in < 0:
        raise StreamError(f"blocks of {config.block_frames} are as long as the first: none opens the stream anew")


def _is_plain(stream: VideoStream) -> bool:
    """Whether the next block's steps run one after the other: those of an opening do in any loop."""
    return stream.loop == "plain" or stream.is_opening


def _empty(lanes: Sequence[StreamKV]) -> tuple[Lane, ...]:
    """How far windows are into which nothing has been written: one for each step."""
    return (Lane(left=len(lanes)),) * len(lanes)


def _plain_shape(due: _Due) -> tuple[object, ...]:
    """What streams have in common whose next plain blocks can share their passes."""
    stream, block = due
    assert block is not None
    step = stream.begun.step if stream.begun is not None and is_resumed(stream, block) else 0
    return *_shape(stream), stream.block_frames, step


def _tick_shape(due: _Due) -> tuple[object, ...]:
    """What streams have in common whose rows can share a pass."""
    return *_shape(due.stream), due.stream.config.block_frames


def _shape(stream: VideoStream) -> tuple[object, ...]:
    return stream.config.height, stream.config.width, stream.window, stream.steps

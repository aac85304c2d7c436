"""The video decoder: from a session's latents to its chunks. It holds each session's decoder cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.geometry import SPATIAL_FACTOR
from engines.config.video_stream import AnyStreamConfig
from engines.device.event_timer import Lap
from engines.vae.conv_cache import ConvCache
from engines.vae.frame_decoder import FrameDecoder
from serving.errors import FrameOutOfRange, SessionNotFound, SlotsFull
from serving.media.chunk import Chunk
from serving.media.encoder import ChunkEncoder
from serving.pipeline.engine_errors import refused
from serving.tracing.tracer import UNTRACED, Tracer

MEASURED = "measured"
"""The key of the session that is decoded to see how long it takes."""

TIMED = 3
"""Later blocks of it, of which the quickest counts: something else may hold one up."""


class DecoderStart(NamedTuple):
    """Where in a stream a decoder begins: the next block, its first pixel frame, and the latents before it.

    `warm` reaches back as far as the decoder remembers, or to the beginning of the stream. On CUDA it is there at
    `ready`, or at the end of the queue of who opens.
    """

    next_block: int
    first_frame: int
    warm: Sequence[Tensor]
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Decoded:
    """A session's decoder behind its last block. Replaced as a whole: a call that fails changes nothing."""

    cache: ConvCache
    next_block: int
    next_frame: int
    encoder: ChunkEncoder | None = None
    last: Chunk | None = None
    seconds: float | None = None


class VideoDecoder:
    """Decodes and encodes the blocks of up to `sessions` sessions, each under a key of the caller's choice.

    `observe` is told the seconds of each block's "decode" and "encode", `tracer` when they were.
    """

    def __init__(
        self,
        decoding: FrameDecoder,
        make_encoder: Callable[[int, int], ChunkEncoder],
        sessions: int,
        observe: Callable[[str, float], None] | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._decoding = decoding
        self._make_encoder = make_encoder
        self._most = sessions
        self._observe = observe
        self._tracer = tracer
        self._sessions: dict[str, _Decoded] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the sessions that are open."""
        return tuple(self._sessions)

    @property
    def free(self) -> int:
        """Sessions that can still be opened."""
        return self._most - len(self._sessions)

    def warm_up(self, streams: Sequence[AnyStreamConfig], channels: int, dtype: torch.dtype) -> None:
        """Decode blocks like those of `streams`, in the thread that is to decode."""
        for stream in streams:
            self._decoding.warm_up(stream, channels, dtype)

    def measure(self, stream: AnyStreamConfig, channels: int, dtype: torch.dtype) -> float:
        """Seconds to decode and encode a block like those of `stream`: the least of several, when all is warm."""
        blocks, times = stream.blocks, list[float]()
        self.open(MEASURED, DecoderStart(0, 0, []))
        try:
            for block in range(1 + TIMED):
                latents = torch.zeros(stream.latent_shape(channels, blocks.frames_of(block)), dtype=dtype)
                self.decode(MEASURED, block, latents)
                times.append(self.block_seconds(MEASURED) or 0.0)
        finally:
            self.close(MEASURED)
        return min(times[1:])

    def open(self, key: str, start: DecoderStart) -> None:
        """Begin, or begin again, to decode a session. Raises SlotsFull if there are too many, or no memory."""
        if key not in self._sessions and self.free <= 0:
            raise SlotsFull(f"the decoder has {self._most} sessions, which is all it may have")
        cache = self._cache_at(start)
        before = self._sessions.get(key)
        encoder = None if before is None else before.encoder
        self._sessions[key] = _Decoded(cache, start.next_block, start.first_frame, encoder)

    def decode(
        self,
        key: str,
        block: int,
        latents: Tensor,
        ready: torch.cuda.Event | None = None,
        traceparent: str | None = None,
        lead_in: int = 0,
    ) -> Chunk:
        """The chunk of `block`: the session's next one, or once more its last one.

        `latents` are [frames, channels, h/8, w/8]; on CUDA they are there at `ready`. `traceparent` is the block's
        span, and `lead_in` as in `engines.streaming.state.Block`. Raises SessionNotFound for a key that is not
        open, FrameOutOfRange for any other block, MemoryFull if there is no memory for it.
        """
        session = self._session(key)
        if session.last is not None and session.last.block == block:
            return session.last
        if session.next_block != block:
            raise FrameOutOfRange(f"block {block} is not the next to decode; {session.next_block} is")
        began = time.monotonic()
        with refused():
            cache = self._decoding.empty_cache() if lead_in else session.cache
            pictures = self._decoding.decode(latents, cache, ready)
        decoded = time.monotonic()
        encoding = Lap(torch.device("cpu"))
        rows, columns = latents.shape[2:]
        encoder = session.encoder or self._make_encoder(rows * SPATIAL_FACTOR, columns * SPATIAL_FACTOR)
        chunk = encoder.encode(block, session.next_frame, pictures.frames[lead_in:].numpy())
        encoding.stop()
        seconds = (pictures.lap.seconds or 0.0) + (encoding.seconds or 0.0)
        self._sessions[key] = _Decoded(pictures.cache, block + 1, chunk.end_frame, encoder, chunk, seconds)
        self._tell("decode", pictures.lap)
        self._tell("encode", encoding)
        self._tracer.stage(traceparent, "decode", began, decoded)
        self._tracer.stage(traceparent, "encode", decoded, time.monotonic(), {"longtake.bytes": chunk.nbytes})
        return chunk

    def block_seconds(self, key: str) -> float | None:
        """How long the last block of a session took to decode and encode; None where there is none."""
        session = self._sessions.get(key)
        return None if session is None else session.seconds

    def close(self, key: str) -> None:
        """Let go of a session. Closing it again does nothing."""
        session = self._sessions.pop(key, None)
        if session is not None and session.encoder is not None:
            session.encoder.close()

    def _cache_at(self, start: DecoderStart) -> ConvCache:
        if not start.warm:
            return self._decoding.empty_cache()
        with refused():
            return self._decoding.rebuild_cache(start.warm, start.ready)

    def _tell(self, stage: str, lap: Lap) -> None:
        if self._observe is not None and (seconds := lap.seconds) is not None:
            self._observe(stage, seconds)

    def _session(self, key: str) -> _Decoded:
        try:
            return self._sessions[key]
        except KeyError:
            raise SessionNotFound(f"the decoder has no session {key}; open it") from None

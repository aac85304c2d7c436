"""Streams of both kinds on one device: from prompts alone, and from prompts and pictures."""

from __future__ import annotations

from functools import partial

import torch

from engines.config.video_stream import AnyStreamConfig, Loop, VideoStreamConfig
from engines.errors import ConfigError
from engines.streaming import snapshot as text_snapshot
from engines.streaming.generator import Generator
from engines.streaming.replica_log import ReplicaLog
from engines.streaming.snapshot import VIDEO, Snapshot
from engines.streaming.snapshot_format import Parts, unpack
from engines.streaming.state import Block
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.video import snapshot as video_snapshot
from engines.video.generator import VideoGenerator
from engines.video.input import InputState
from engines.video.replay import resume
from engines.video.snapshot import VideoSnapshot
from engines.video.stream import VideoStream

AnyStream = Stream | VideoStream
AnySnapshot = Snapshot | VideoSnapshot


class StreamEngine:
    """What streams of both kinds have in common: each is opened, saved and closed by the rules of its own kind.

    Their blocks are made by `text` and by `video`, which is None where the model restyles nothing. Methods raise
    what those do.
    """

    def __init__(self, text: Generator, video: VideoGenerator | None = None) -> None:
        self.text = text
        self._video = video

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return self.text.cache.device

    @property
    def restyles(self) -> bool:
        """Whether streams can be opened that restyle a video."""
        return self._video is not None

    @property
    def video(self) -> VideoGenerator:
        """Makes the blocks of streams that restyle a video. Raises ConfigError if the model does not."""
        if self._video is None:
            raise ConfigError("the model makes videos from prompts alone; choose one that restyles videos")
        return self._video

    def open(self, config: AnyStreamConfig) -> AnyStream:
        """A new stream with nothing in it."""
        return self.video.open(config) if isinstance(config, VideoStreamConfig) else self.text.open(config)

    def set_prompt(self, stream: AnyStream, prompt: Prompt) -> None:
        """Put `prompt` in force from the stream's next block on."""
        if isinstance(stream, VideoStream):
            self.video.set_prompt(stream, prompt)
        else:
            self.text.set_prompt(stream, prompt)

    def use_loop(self, stream: AnyStream, loop: Loop) -> None:
        """Run a video stream's next block in `loop`; a stream from prompts alone has none."""
        if isinstance(stream, VideoStream) and stream.loop != loop:
            self.video.use_loop(stream, loop)

    def flush(self, stream: AnyStream) -> list[Block]:
        """The blocks that are on their way, finished without another input."""
        return self.video.flush(stream) if isinstance(stream, VideoStream) else []

    def fork(self, stream: AnyStream) -> AnyStream:
        """A second stream in the same state."""
        return self.video.fork(stream) if isinstance(stream, VideoStream) else self.text.fork(stream)

    def close(self, stream: AnyStream) -> None:
        """Give the stream's memory back. Closing it again does nothing."""
        if isinstance(stream, VideoStream):
            self.video.close(stream)
        else:
            self.text.close(stream)

    def lost_slots(self, stream: AnyStream) -> int:
        """How many slots the queues of a restyled video had no room for; waits for the device."""
        if not isinstance(stream, VideoStream) or stream.closed or stream.is_suspended:
            return 0
        return self.video.lost_slots(stream)

    # Streams that wait

    def suspended(self, config: AnyStreamConfig) -> AnyStream:
        """A new stream that needs no room until it is resumed."""
        if isinstance(config, VideoStreamConfig):
            return self.video.suspended(config)
        return self.text.suspended(config)

    def suspend(self, stream: AnyStream) -> None:
        """Give back all memory of the stream but what a light snapshot holds, until it is resumed."""
        if isinstance(stream, VideoStream):
            self.video.suspend(stream)
        else:
            self.text.suspend(stream)

    def resume(self, stream: AnyStream) -> None:
        """Have a suspended stream go on: what it held is rebuilt, nearly as it was."""
        if isinstance(stream, VideoStream):
            resume(self.video, stream)
        else:
            self.text.resume(stream)

    # Snapshots

    def replica_log(self, stream: AnyStream) -> ReplicaLog:
        """Says what is new in the stream's light snapshot from one block to the next."""
        return ReplicaLog(partial(self._light_parts, stream), self.text.copier)

    def take_light(self, stream: AnyStream) -> bytes:
        """A light snapshot."""
        return text_snapshot.pack_light(*self._light_parts(stream))

    def exact_bytes(self, stream: AnyStream, input_state: InputState | None = None) -> int | None:
        """About how much `take_exact` makes; None where there can be no exact one.

        That is of a suspended stream, and of one that restyles a video where nothing is known of its encoder.
        """
        if stream.is_suspended:
            return None
        if isinstance(stream, VideoStream):
            return None if input_state is None else video_snapshot.exact_bytes(self.video, stream, input_state)
        return text_snapshot.exact_bytes(self.text, stream)

    def take_exact(self, stream: AnyStream, input_state: InputState | None = None) -> bytes:
        """An exact snapshot, with what is known of the encoder of a stream that restyles a video."""
        if isinstance(stream, VideoStream):
            return video_snapshot.take_exact(self.video, stream, input_state)
        return text_snapshot.take_exact(self.text, stream)

    def restore(self, snapshot: AnySnapshot, *, suspended: bool = False) -> AnyStream:
        """Open the stream of a snapshot; that of a light one can be `suspended`, and needs no room then."""
        if isinstance(snapshot, VideoSnapshot):
            return video_snapshot.restore(self.video, snapshot, suspended=suspended)
        return text_snapshot.restore(self.text, snapshot, suspended=suspended).stream

    def _light_parts(self, stream: AnyStream) -> Parts:
        if isinstance(stream, VideoStream):
            return video_snapshot.light_parts(self.video, stream)
        return text_snapshot.light_parts(self.text, stream)


def read_snapshot(data: bytes) -> AnySnapshot:
    """What `data` holds, on no device. Raises SnapshotError for damage."""
    kind, tensors, facts = unpack(data)
    parts = Parts(tensors, facts)
    return video_snapshot.snapshot_of(kind, parts) if VIDEO in facts else text_snapshot.snapshot_of(kind, parts)

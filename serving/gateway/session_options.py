"""What a new session may be asked to be."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from serving.auth import Caller
from serving.config import ServerConfig
from serving.errors import InvalidRequest, LimitReached
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_pace
from serving.replication.messages import SessionSpec
from serving.session.pacing import MAX_FPS, Pace
from serving.timeline.formats.document import shown
from serving.timeline.timeline import Settings


class OptionsChecker:
    """Checks options against what a server was started with, of whose sessions `stream` is the usual one."""

    def __init__(self, config: ServerConfig, stream: StreamConfig) -> None:
        self._config, self._stream = config, stream
        self._served = config.served_sizes((stream.height, stream.width))

    def describe(self) -> pb.DescribeServerResponse:
        """What may be asked for."""
        config = self._config
        return pb.DescribeServerResponse(
            model=config.model,
            sizes=[pb.PictureSize(height=height, width=width) for height, width in self._served],
            other_sizes=not config.sizes,
            max_pixels=config.limits.pixels,
            max_fps=MAX_FPS,
            default_fps=Pace.fps,
        )

    def read(self, session_id: str, options: pb.SessionOptions, caller: Caller) -> SessionSpec:
        """The session that is asked for. Raises InvalidRequest or LimitReached."""
        model = self._config.model
        if options.model not in ("", model):
            raise InvalidRequest(f"the model {shown(options.model)} is not loaded here; {model!r} is")
        stream, pace = self._read_stream(options), read_pace(options, self._config.lease_s)
        return SessionSpec(session_id, caller.name, model, stream, pace, time.time())

    def _read_stream(self, options: pb.SessionOptions) -> StreamConfig:
        asked = Settings(height=options.height or None, width=options.width or None)
        height, width = asked.height or self._stream.height, asked.width or self._stream.width
        seed = options.seed if options.HasField("seed") else secrets.randbits(32)
        try:
            stream = replace(self._stream, seed=seed, height=height, width=width)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        if self._config.sizes and (height, width) not in self._served:
            listed = ", ".join(f"{height}x{width}" for height, width in self._served)
            raise InvalidRequest(
                f"pictures of {height}x{width}, height by width, are not served here; {listed} are"
            )
        pixels, most = height * width, self._config.limits.pixels
        if pixels > most:
            raise LimitReached(f"the picture has {pixels} pixels; at most {most} are generated here")
        return stream

"""What a new session may be asked to be."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from engines.config.model import ModelConfig
from engines.config.stream import StreamConfig
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig
from engines.errors import ConfigError
from serving.auth import Caller
from serving.config import ServerConfig
from serving.errors import InvalidRequest, LimitReached
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_fit, read_pace
from serving.replication.messages import SessionSpec
from serving.session.pacing import MAX_FPS, Pace
from serving.timeline.formats.document import shown
from serving.timeline.timeline import Settings


class OptionsChecker:
    """Checks options against what a server was started with, whose sessions are usually as `model` says."""

    def __init__(self, config: ServerConfig, model: ModelConfig) -> None:
        self._config, self._model = config, model

    def describe(self) -> pb.DescribeServerResponse:
        """What may be asked for."""
        config, video = self._config, self._model.video
        served = self._served(self._model.usual_stream)
        takes = [pb.INPUT_KIND_NONE] * (not self._model.needs_video) + [pb.INPUT_KIND_VIDEO] * (video is not None)
        return pb.DescribeServerResponse(
            model=config.model,
            sizes=[pb.PictureSize(height=height, width=width) for height, width in served],
            other_sizes=config.other_sizes,
            max_pixels=config.limits.pixels,
            max_fps=MAX_FPS,
            default_fps=Pace.fps,
            inputs=takes,
            video_size=None if video is None else pb.PictureSize(height=video.height, width=video.width),
        )

    def read(self, session_id: str, options: pb.SessionOptions, caller: Caller) -> SessionSpec:
        """The session that is asked for. Raises InvalidRequest or LimitReached."""
        model = self._config.model
        if options.model not in ("", model):
            raise InvalidRequest(f"the model {shown(options.model)} is not loaded here; {model!r} is")
        stream, fit = self._read_stream(options), read_fit(options.fit)
        pace = self._read_pace(options, stream)
        return SessionSpec(session_id, caller.name, model, stream, pace, time.time(), fit)

    def _read_pace(self, options: pb.SessionOptions, stream: AnyStreamConfig) -> Pace:
        pace = read_pace(options, self._config.lease_s)
        if isinstance(stream, StreamConfig):
            return pace
        if pace.fps != Pace.fps:
            raise InvalidRequest(
                f"fps is {pace.fps}; a session that restyles a video makes {Pace.fps} frames a second of it"
            )
        # It runs ahead of nobody: there are no pictures from which it could.
        return replace(pace, ahead=Pace.ahead)

    def _usual(self, options: pb.SessionOptions) -> AnyStreamConfig:
        """A stream of the kind that is asked for, as the model has it."""
        model, kind = self._model, options.input
        if kind not in (pb.INPUT_KIND_UNSPECIFIED, pb.INPUT_KIND_NONE, pb.INPUT_KIND_VIDEO):
            raise InvalidRequest(f"input {kind} is unknown; known: 1 (none), 2 (video)")
        if kind == pb.INPUT_KIND_VIDEO:
            if model.video is None:
                raise InvalidRequest(f"{model.name} restyles no videos; leave `input` out")
            return _restyling(model.video, options)
        if options.HasField("noise_scale") and not model.needs_video:
            raise InvalidRequest("noise_scale is of sessions that restyle a video; say `input` INPUT_KIND_VIDEO")
        if model.needs_video:
            raise InvalidRequest(f"{model.name} only restyles videos; say `input` INPUT_KIND_VIDEO")
        return model.stream

    def _served(self, usual: AnyStreamConfig) -> tuple[tuple[int, int], ...]:
        return self._config.served_sizes((usual.height, usual.width))

    def _read_stream(self, options: pb.SessionOptions) -> AnyStreamConfig:
        usual = self._usual(options)
        asked = Settings(height=options.height or None, width=options.width or None)
        height, width = asked.height or usual.height, asked.width or usual.width
        seed = options.seed if options.HasField("seed") else secrets.randbits(32)
        try:
            stream = replace(usual, seed=seed, height=height, width=width)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        served = self._served(usual)
        if not self._config.other_sizes and (height, width) not in served:
            listed = ", ".join(f"{height}x{width}" for height, width in served)
            raise InvalidRequest(
                f"pictures of {height}x{width}, height by width, are not served here; {listed} are"
            )
        pixels, most = height * width, self._config.limits.pixels
        if pixels > most:
            raise LimitReached(f"the picture has {pixels} pixels; at most {most} are generated here")
        return stream


def _restyling(video: VideoStreamConfig, options: pb.SessionOptions) -> VideoStreamConfig:
    """Each block leaves after its own steps: at the pace of pictures, sessions share the passes of both loops."""
    noise_scale = options.noise_scale if options.HasField("noise_scale") else video.noise_scale
    try:
        return replace(video, loop="plain", noise_scale=noise_scale)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None

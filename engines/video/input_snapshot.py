"""What an encoder remembers of a stream's pictures, in the exact snapshot of that stream."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.errors import SnapshotError
from engines.sampling.motion_noise import MotionNoise, NoiseSetting
from engines.streaming.snapshot import add_cache, consistent, require_shape, restored_cache
from engines.streaming.snapshot_format import Parts, unpack
from engines.video.input import InputEncoder, InputState

INPUT = "input"
"""The fact that only the snapshot of a stream has that was taken with its encoder's state."""

PICTURE = "input.picture"


def add_input(state: InputState, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Put `state` into an exact snapshot."""
    add_cache("encoder", state.cache, tensors, facts)
    scale = None
    if state.motion is not None:
        scale, tensors[PICTURE] = state.motion.scale, state.motion.last
    facts[INPUT] = {"noise": asdict(state.noise), "blocks": state.blocks, "scale": scale}


def restore_input(encoder: InputEncoder, config: VideoStreamConfig, data: bytes | Parts) -> InputState:
    """Where the pictures of the stream of `config` go on that `data` holds, which may have been read already.

    Raises SnapshotError if the bytes are damaged, or were taken without an encoder's state or with another kind of
    encoder. Whether it is the same network on the same kind of device is for `snapshot.restore` to say.
    """
    tensors, facts = data if isinstance(data, Parts) else unpack(data)[1:]
    if INPUT not in facts:
        raise SnapshotError("the snapshot holds no encoder's state; take it with one, or start from new pictures")
    with consistent():
        kept, start = facts[INPUT], encoder.start(config)
        cache = restored_cache("encoder", start.cache, tensors, facts, encoder.device)
        blocks, scale, motion = kept["blocks"], kept["scale"], None
        opens, starts = cache.frames_seen == 0, blocks == 0
        if not isinstance(blocks, int) or blocks < 0 or (scale is None) != opens or (starts and not opens):
            raise ValueError(f"{str(blocks)[:40]} encoded blocks, noise {str(scale)[:40]}")
        if scale is not None:
            picture = tensors[PICTURE]
            require_shape(PICTURE, picture, (1, 3, config.height, config.width))
            motion = MotionNoise(NoiseSetting(scale).scale, picture.to(encoder.device, encoder.dtype))
        encoder.wait_for_caller()
        return InputState(cache, NoiseSetting(**kept["noise"]), blocks, motion)

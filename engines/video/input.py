"""From pictures to the inputs of blocks: encoded, with the noise that they are to be mixed with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.device.host_copy import to_device
from engines.device.memory_budget import typed_out_of_memory
from engines.device.side_stream import SideStream
from engines.sampling.motion_noise import MotionNoise, NoiseSetting, first_timestep
from engines.vae.conv_cache import ConvCache
from engines.vae.protocol import PictureEncoder


class BlockInput(NamedTuple):
    """What block `number` is made from.

    Args:
        number: of the block in its stream.
        latents: [frames, channels, h/8, w/8], as the network reads them.
        noise_scale: the share of noise in the input.
        timestep: at which the first step runs.

    """

    number: int
    latents: Tensor
    noise_scale: float
    timestep: int


@dataclass(frozen=True, eq=False)
class InputState:
    """How far a stream's pictures have been encoded: a value, which each call replaces.

    `blocks` counts those of the stream. `motion` is None where the next pictures open it. `noise` holds for the
    pictures that come, and may be replaced by another setting between two calls.
    """

    cache: ConvCache
    noise: NoiseSetting
    blocks: int = 0
    motion: MotionNoise | None = None

    def under(self, noise: NoiseSetting) -> InputState:
        """As if the last pictures had come under another setting, which holds for all that come."""
        return replace(self, noise=noise, motion=None if self.motion is None else self.motion.under(noise))


class Encoded(NamedTuple):
    """The inputs of some blocks, and the state after them."""

    inputs: list[BlockInput]
    after: InputState


class InputEncoder:
    """Encodes the pictures of streams; what is remembered of a stream is the caller's `InputState`.

    On CUDA it works in a queue of its own, and a call waits for how much moved in its pictures: it belongs in a
    thread beside the one that generates.
    """

    def __init__(self, vae: PictureEncoder, device: torch.device, dtype: torch.dtype) -> None:
        self._vae = vae
        self.dtype = dtype
        self._side_stream = SideStream(device)
        self._loaded = self._side_stream.record_event()

    @property
    def device(self) -> torch.device:
        """Where pictures are encoded."""
        return self._side_stream.device

    def warm_up(self, config: VideoStreamConfig) -> None:
        """Encode a first and two later blocks of black pictures, in the thread that is to encode.

        The second of the later ones meets a cache such as all that follow.
        """
        state = self.start(config)
        for block in range(3):
            frames = config.blocks.pixel_frames_of(block)
            black = torch.zeros(frames, config.height, config.width, 3, dtype=torch.uint8)
            state = self.encode(config, black, state).after

    def wait_for_caller(self) -> None:
        """Wait until what the caller's queue has been given is done: encoding waits for none of it."""
        if (given := self._side_stream.record_event()) is not None:
            given.synchronize()

    def start(self, config: VideoStreamConfig, block: int = 0, noise: NoiseSetting | None = None) -> InputState:
        """Before the pictures of the block that opens a stream; `noise` replaces what `config` says of it."""
        noise = noise or NoiseSetting(config.noise_scale, config.motion_noise)
        return InputState(self._vae.start_encoding(), noise, block)

    @torch.inference_mode()
    def resume(self, config: VideoStreamConfig, pictures: Tensor, blocks: int) -> InputState:
        """In mid-stream, before block `blocks`, where the last pictures were [1 + 4k, height, width, 3] uint8.

        The more they are the nearer it is to the state that was lost; its level of noise begins anew. Raises as
        `encode`.
        """
        _check(config, pictures)
        with typed_out_of_memory("the input of a block"):
            return self._side_stream.begin(partial(self._resumed, config, pictures, blocks), self._loaded).wait()

    def _resumed(self, config: VideoStreamConfig, pictures: Tensor, blocks: int) -> InputState:
        start, pixels = self.start(config), self._pixels(pictures)
        cache = self._vae.encode_means(pixels.unsqueeze(0), start.cache).cache
        return InputState(cache, start.noise, blocks, MotionNoise.start(start.noise, pixels))

    @torch.inference_mode()
    def encode(self, config: VideoStreamConfig, pictures: Tensor, state: InputState) -> Encoded:
        """The inputs of the next blocks, from `pictures` [N, height, width, 3] uint8.

        N is 1 + 4(n-1) at the start of a stream whose first block has n latent frames, and 4n for each later block
        of n. A block that opens a stream anew has as many pictures as a later one: its first is repeated before
        it. Pictures of one call have one level of noise, that of the most that moved. Raises ValueError for
        pictures of another size, StreamError if N breaks its rule, DeviceOutOfMemory; `state` stays of use.
        """
        _check(config, pictures)
        with typed_out_of_memory("the input of a block"):
            return self._side_stream.begin(partial(self._encoded, config, pictures, state), self._loaded).wait()

    def _encoded(self, config: VideoStreamConfig, pictures: Tensor, state: InputState) -> Encoded:
        noise, before = state.noise, state.motion
        if before is None and state.blocks > 0:
            pictures = with_lead_in(config, pictures)
        pixels = self._pixels(pictures)
        encoded = self._vae.encode_means(pixels.unsqueeze(0), state.cache)
        motion = MotionNoise.start(noise, pixels) if before is None else before.after(noise, pixels)
        timestep = _timestep(config, motion)
        inputs, first, number = list[BlockInput](), 0, state.blocks
        opening = number if before is None else 0
        latents = encoded.latents[0]
        while first < latents.shape[0]:
            frames = config.blocks.frames_of(number, opening)
            inputs.append(BlockInput(number, latents[first : first + frames].clone(), motion.scale, timestep))
            first, number = first + frames, number + 1
        return Encoded(inputs, InputState(encoded.cache, state.noise, number, motion))

    def _pixels(self, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] in -1..1."""
        here = to_device(pictures, self._side_stream.device)
        return (here.permute(0, 3, 1, 2) / 127.5 - 1).to(self.dtype)


def with_lead_in(config: VideoStreamConfig, pictures: Tensor) -> Tensor:
    """Pictures that open a stream anew, behind the first of them as often as its opening is longer."""
    return torch.cat([pictures[:1].expand(config.lead_in, -1, -1, -1), pictures])


def under_noise(block: BlockInput, config: VideoStreamConfig, after: InputState) -> BlockInput:
    """The input of the last pictures before `after`, where it is mixed as that says: see `InputState.under`."""
    assert after.motion is not None
    return block._replace(noise_scale=after.motion.scale, timestep=_timestep(config, after.motion))


def _timestep(config: VideoStreamConfig, motion: MotionNoise) -> int:
    """At which the first step of the block runs that the last pictures made."""
    is_first = motion.before is None
    return config.steps[0] if is_first else first_timestep(motion.scale, config.timestep_below)


def _check(config: VideoStreamConfig, pictures: Tensor) -> None:
    """Raise ValueError unless these are pictures of the stream's size."""
    if tuple(pictures.shape[1:]) != (config.height, config.width, 3) or pictures.dtype != torch.uint8:
        raise ValueError(
            f"pictures {list(pictures.shape)} in {pictures.dtype} are not uint8 "
            f"[frames, {config.height}, {config.width}, 3]"
        )

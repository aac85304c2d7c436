"""The memory that a model needs, counted without allocating it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from engines.cache.kv_cache import PLAIN_KV, CacheLayout, CacheSize, KVFormat, cache_size
from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.model import ModelConfig
from engines.config.networks import AutoencoderConfig
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig
from engines.loading.model import Autoencoder, build_vae
from engines.text.umt5 import UMT5Encoder
from engines.wan.transformer import CausalTransformer


@cache
def memory_needed(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the networks in `dtype` and of what one session keeps. Allocates nothing."""
    return sum(parameter_bytes(config, dtype)) + sum(largest_session_bytes(config, config.streams, dtype))


class SessionBytes(NamedTuple):
    """What one session keeps: its window, the raw keys of its sink, its prompt, its decoder's cache.

    One that restyles a video has a window, and may have a prompt, for each of its steps, means and slot queues,
    and two caches of an encoder: before and after the block that is encoded ahead.
    """

    window: int
    raw_keys: int
    prompt: int
    decoder: int
    slot_choice: int = 0
    encoder: int = 0


@cache
def session_bytes(
    config: ModelConfig,
    stream: AnyStreamConfig,
    dtype: torch.dtype,
    kv_format: KVFormat = PLAIN_KV,
) -> SessionBytes:
    """What a session of the kind `stream` keeps. Allocates nothing."""
    size = cache_size(1, stream, config.transformer)
    layout = CacheLayout.of(config.transformer, dtype, kv_format)
    return SessionBytes(
        window=size.window * layout.window_token_bytes,
        raw_keys=size.raw * layout.raw_token_bytes,
        prompt=(size.prompts - config.transformer.text_len) * layout.prompt_token_bytes,
        decoder=_decoder_bytes(
            config.vae, stream.latent_shape(config.vae.latent_channels, stream.block_frames), dtype
        ),
        slot_choice=layout.nbytes(CacheSize(0, 0, 0, size.means, size.records)),
        encoder=2 * _encoder_bytes(config.encoder or config.vae, stream.height, stream.width, dtype)
        if isinstance(stream, VideoStreamConfig)
        else 0,
    )


def largest_session_bytes(
    config: ModelConfig, streams: Iterable[AnyStreamConfig], dtype: torch.dtype, kv_format: KVFormat = PLAIN_KV
) -> SessionBytes:
    """What a session keeps of the kind that keeps most."""
    return max((session_bytes(config, stream, dtype, kv_format) for stream in streams), key=sum)


@cache
@torch.inference_mode()
def _decoder_bytes(config: AutoencoderConfig, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Of a decoder's cache in the middle of a stream; `shape` is that of a block's latents."""
    vae = _described(config, dtype)
    latents, conv_cache = torch.empty(1, *shape, device="meta", dtype=dtype), vae.start_decoding()
    for _ in range(2):
        conv_cache = vae.decode(latents, conv_cache).cache
    return conv_cache.nbytes


@cache
@torch.inference_mode()
def _encoder_bytes(config: AutoencoderConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Of an encoder's cache in the middle of a stream."""
    vae = _described(config, dtype)
    conv_cache = vae.start_encoding()
    for frames in (1, TEMPORAL_FACTOR, TEMPORAL_FACTOR):
        pictures = torch.empty(1, frames, 3, height, width, device="meta", dtype=dtype)
        conv_cache = vae.encode(pictures, conv_cache).cache
    return conv_cache.nbytes


def _described(config: AutoencoderConfig, dtype: torch.dtype) -> Autoencoder:
    """An autoencoder without memory."""
    with torch.device("meta"):
        return build_vae(config).to("meta", dtype)


class ModelBytes(NamedTuple):
    """What the parameters of each network take; an encoder of its own is part of the codec."""

    transformer: int
    codec: int
    text_encoder: int


def parameter_bytes(config: ModelConfig, dtype: torch.dtype) -> ModelBytes:
    """The memory that a model's parameters need in `dtype`, network by network."""
    with torch.device("meta"):
        codecs = [build_vae(codec) for codec in (config.vae, config.encoder) if codec is not None]
        networks = CausalTransformer(config.transformer), nn.ModuleList(codecs), UMT5Encoder(config.text_encoder)
    return ModelBytes(*(_tensor_bytes(network, dtype) for network in networks))


def _tensor_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    """Parameters are in `dtype`; buffers in their own, as 8-bit weights and their scales are."""
    state = network.state_dict()
    own = sum(buffer.nbytes for name, buffer in network.named_buffers() if name in state)
    return own + sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize

"""What every stage of a model must compute and move, counted from its config.

A multiply-add is two FLOPs; only matrix products and convolutions count. Bytes are those that cannot be avoided
however well operations are fused, and are counted once per stage:

- a pass: the weights it uses, the prompt's keys and values, and each slot it attends, which is read, or written
  if it is the pass's own. Not the activations between operations, nor latents and flow, nor what makes the
  timesteps' modulations, which are kept.
- the text encoder: its layers' weights, and in and out the rows of its tokens.
- the codec: the weights of its half, latents, pictures (uint8 where decoded), and its cache, read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engines.cache.kv_cache import CacheLayout, cache_size
from engines.config.geometry import PATCH, SPATIAL_FACTOR, TEMPORAL_FACTOR
from engines.config.model import ModelConfig
from engines.config.networks import TransformerConfig
from engines.config.stream import StreamConfig
from engines.loading.model import build_vae
from engines.vae.protocol import Decoded, Encoded
from engines.wan.layers import MODULATIONS


@dataclass(frozen=True)
class Work:
    """Floating-point operations, bytes that cross memory, and operations of 8 bits, which are counted apart."""

    flops: int
    nbytes: int
    eight_bit_ops: int = 0

    def __add__(self, other: Work) -> Work:
        ops = self.eight_bit_ops + other.eight_bit_ops
        return Work(self.flops + other.flops, self.nbytes + other.nbytes, ops)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.nbytes * times, self.eight_bit_ops * times)


class Parameters(NamedTuple):
    """Parameters of a transformer by what they are for.

    `layer` and `layer_prompt` are those of one layer, `layer_memory` the part of `layer` that makes keys and
    values. `text` and `layer_prompt` run once per prompt.
    """

    patch: int
    time: int
    text: int
    layer: int
    layer_memory: int
    layer_prompt: int
    head: int
    layers: int

    @classmethod
    def of(cls, config: TransformerConfig) -> Parameters:
        """Count the parameters of `config`."""
        dim, patch = config.dim, patch_values(config)
        square, modulation = _linear(dim, dim), MODULATIONS * dim
        memory = 2 * square + dim + modulation
        ffn = _linear(dim, config.ffn_dim) + _linear(config.ffn_dim, dim)
        return cls(
            patch=_linear(patch, dim),
            time=_linear(config.freq_dim, dim) + square + _linear(dim, modulation),
            text=_linear(config.text_dim, dim) + square,
            layer=memory + 4 * square + 4 * dim + ffn,  # Four norm vectors: q, cross q, norm3's two.
            layer_memory=memory,
            layer_prompt=2 * square + dim,
            head=_linear(dim, patch) + 2 * dim,
            layers=config.layers,
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.patch + self.time + self.text + self.layers * (self.layer + self.layer_prompt) + self.head

    @property
    def denoising(self) -> int:
        """Those that a denoising pass reads."""
        return self.patch + self.layers * self.layer + self.head

    @property
    def clean(self) -> int:
        """Those that a pass reads which stops at the last layer's keys and values."""
        return self.patch + (self.layers - 1) * self.layer + self.layer_memory


def _linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias."""
    return inputs * outputs + outputs


def patch_values(config: TransformerConfig) -> int:
    """Latent values that one token stands for."""
    return PATCH * PATCH * config.latent_channels


@dataclass(frozen=True)
class Counts:
    """Counts the stages of `model` for one stream of the kind `stream`, in `dtype`.

    Frames are latent frames. `prompt_keys` are the keys of the prompt that a token attends: the model's text_len
    in LongLive, which is the default here, and one more than the prompt's tokens where its padding is folded.
    """

    model: ModelConfig
    stream: StreamConfig
    dtype: torch.dtype
    prompt_keys: int | None = None

    @property
    def parameters(self) -> Parameters:
        """Of the transformer."""
        return Parameters.of(self.model.transformer)

    @property
    def session_bytes(self) -> int:
        """What one session keeps in the pools: its window, raw keys of its sink, its prompt."""
        size = cache_size(1, self.stream, self.model.transformer)
        return CacheLayout.of(self.model.transformer, self.dtype).nbytes(size)

    def denoising_pass(self, attended_frames: int) -> Work:
        """One step of a block that attends `attended_frames`, itself included."""
        frames, layers = self.stream.block_frames, self.model.transformer.layers
        memory = layers * (self._kv_bytes(attended_frames) + self._prompt_bytes)
        weights = self._weight_bytes(self.parameters.denoising, layers * self._layer_products)
        ends = Work(2 * self._patches_flops(frames), weights + memory)
        return ends + self._layer(frames, attended_frames) * layers

    def clean_pass(self, frames: int, attended_frames: int) -> Work:
        """A pass over `frames` made for its keys and values: a block's clean pass, or a KV recache.

        In the last layer only these are computed. LongLive's clean pass is a whole denoising pass.
        """
        before_last, last = self.model.transformer.layers - 1, 2 * self.model.transformer.dim**2
        memory = before_last * (self._kv_bytes(attended_frames) + self._prompt_bytes) + self._kv_bytes(frames)
        weights = self._weight_bytes(self.parameters.clean, before_last * self._layer_products + last)
        ends = Work(self._patches_flops(frames), weights + memory) + self._products(frames, last)
        return ends + self._layer(frames, attended_frames) * before_last

    def recache(self, *, keep_sink: bool) -> Work:
        """The KV recache of a full window: over all of it, as in LongLive, or over all but its sink."""
        window = self.stream.window_frames
        return self.clean_pass(window - self.stream.sink_frames if keep_sink else window, window)

    def read_prompt(self, rows: int) -> Work:
        """A prompt's keys and values in every layer, from `rows` rows of its embedding."""
        config, parameters = self.model.transformer, self.parameters
        per_row = config.text_dim * config.dim + config.dim**2 + config.layers * 2 * config.dim**2
        weights = parameters.text + config.layers * parameters.layer_prompt
        values = rows * (config.text_dim + config.layers * 2 * config.dim)
        return Work(2 * rows * per_row, (weights + values) * self.dtype.itemsize)

    def encode_text(self, tokens: int) -> Work:
        """The text encoder over a prompt of `tokens`."""
        config = self.model.text_encoder
        inner = config.heads * config.head_dim
        products = 4 * config.dim * inner + 3 * config.dim * config.ffn_dim
        rest = 2 * config.dim + config.buckets * config.heads
        weights = config.layers * (products + rest) + config.dim
        flops = config.layers * (2 * tokens * products + 4 * tokens**2 * inner)
        return Work(flops, (weights + 2 * tokens * config.dim) * self.dtype.itemsize)

    def decode_block(self) -> Work:
        """The codec's decoder over a block in the middle of a stream, to uint8 pictures."""
        codec = build_vae(self.model.vae).to("meta", self.dtype)
        latents, cache = self._meta_latents(), codec.start_decoding()
        cache = codec.decode(latents, cache).cache
        flops, decoded = _count(lambda: codec.decode(latents, cache))
        return Work(
            flops, _nbytes(codec.decoder) + latents.nbytes + decoded.frames.numel() + 2 * decoded.cache.nbytes
        )

    def encode_block(self) -> Work:
        """The codec's encoder over the pictures of a block in the middle of a stream."""
        codec = build_vae(self.model.vae).to("meta", self.dtype)
        pictures, cache = self._meta_pictures(), codec.start_encoding()
        cache = codec.encode(pictures[:, :1], cache).cache
        cache = codec.encode(pictures, cache).cache
        flops, encoded = _count(lambda: codec.encode(pictures, cache))
        return Work(
            flops, _nbytes(codec.encoder) + pictures.nbytes + encoded.latents.nbytes + 2 * encoded.cache.nbytes
        )

    def block(self) -> Work:
        """A whole block at full window: its denoising steps, its clean pass, its pictures."""
        window, frames = self.stream.window_frames, self.stream.block_frames
        steps = self.denoising_pass(window) * len(self.stream.steps)
        return steps + self.clean_pass(frames, window) + self.decode_block()

    def _tokens(self, frames: int) -> int:
        return frames * self.stream.rows * self.stream.columns

    def _layer(self, frames: int, attended_frames: int) -> Work:
        """What one layer computes: its products, attention to the window and to the prompt."""
        attended = self._tokens(attended_frames) + self._prompt_keys
        attention = Work(4 * self._tokens(frames) * attended * self.model.transformer.dim, 0)
        return self._products(frames, self._layer_products) + attention

    @property
    def _layer_products(self) -> int:
        """Weights of one layer's six square projections and of its feed-forward net."""
        config = self.model.transformer
        return 6 * config.dim**2 + 2 * config.dim * config.ffn_dim

    def _products(self, frames: int, weights: int) -> Work:
        """Frames' tokens times so many weights of a layer, which hold 8 bits if the transformer is quantized."""
        ops = 2 * self._tokens(frames) * weights
        return Work(ops, 0) if self.model.transformer.quantization is None else Work(0, 0, ops)

    def _weight_bytes(self, parameters: int, products: int) -> int:
        """Of so many parameters, `products` of them weights of layers' products."""
        saved = 0 if self.model.transformer.quantization is None else products * (self.dtype.itemsize - 1)
        return parameters * self.dtype.itemsize - saved

    def _patches_flops(self, frames: int) -> int:
        """Patches to tokens, or tokens to patches."""
        return 2 * self._tokens(frames) * patch_values(self.model.transformer) * self.model.transformer.dim

    @property
    def _prompt_keys(self) -> int:
        return self.model.transformer.text_len if self.prompt_keys is None else self.prompt_keys

    @property
    def _prompt_bytes(self) -> int:
        """The prompt's keys and values in one layer."""
        return 2 * self._prompt_keys * self.model.transformer.dim * self.dtype.itemsize

    def _kv_bytes(self, frames: int) -> int:
        """Keys and values of frames in one layer."""
        return 2 * self._tokens(frames) * self.model.transformer.dim * self.dtype.itemsize

    def _meta_latents(self) -> Tensor:
        stream, channels = self.stream, self.model.vae.latent_channels
        height, width = stream.height // SPATIAL_FACTOR, stream.width // SPATIAL_FACTOR
        return torch.empty(1, stream.block_frames, channels, height, width, device="meta", dtype=self.dtype)

    def _meta_pictures(self) -> Tensor:
        stream = self.stream
        frames = TEMPORAL_FACTOR * stream.block_frames
        return torch.empty(1, frames, 3, stream.height, stream.width, device="meta", dtype=self.dtype)


def _nbytes(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


T = TypeVar("T", Decoded, Encoded)


@torch.inference_mode()
def _count(call: Callable[[], T]) -> tuple[int, T]:
    """FLOPs of a call on meta tensors, and what it returned."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result

"""What a model takes of a device's memory, line by line, counted without allocating it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from engines.cache.kv_cache import PLAIN_KV, KVFormat
from engines.config.model import ModelConfig
from engines.config.networks import VAEConfig
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig
from engines.device.memory_budget import RESERVE_BYTES
from engines.export.graph import Stage
from engines.loading.footprint import largest_session_bytes, parameter_bytes

CONTEXT_BYTES = 900_000_000
"""Of CUDA and its libraries: an estimate."""

WORKSPACE_PER_VALUE = 10.7
"""Bytes of a pass for each value in the widest layer of its feed-forward net: an estimate, 0.15 GB for a latent
frame of 480x832."""

WAN_DECODING_PER_PIXEL = 7340
DECODING_PER_PIXEL = 630
"""Bytes of decoding a block for each pixel of a picture in 16 bits: estimates, 2.93 GB at 480x832 for Wan's
decoder and 0.25 GB for others."""


WAN_ENCODING_PER_PIXEL = 2300
"""The same of encoding one, 0.92 GB, beside the cache that it leaves; for other encoders as of their decoding."""


@dataclass(frozen=True)
class MemoryLine:
    """Something that takes memory. What is not `estimated` is counted, to the byte."""

    what: str
    nbytes: int
    estimated: bool = False

    @override
    def __str__(self) -> str:
        return f"{gigabytes(self.nbytes):>9}  {self.what}{', an estimate' if self.estimated else ''}"


@dataclass(frozen=True)
class PlanBytes:
    """Of the plans that run a `stage`: theirs, and what the largest of them takes for activations."""

    stage: Stage
    plans: int
    activations: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes: `fixed` and, for each session, `session` on its device; `host` elsewhere."""

    fixed: tuple[MemoryLine, ...]
    session: tuple[MemoryLine, ...]
    host: tuple[MemoryLine, ...] = ()

    def nbytes(self, sessions: int) -> int:
        """Of the device, with so many sessions."""
        return _sum(self.fixed) + sessions * _sum(self.session)

    def sessions_in(self, nbytes: int) -> int:
        """How many sessions fit into so many bytes of the device."""
        return max(0, (nbytes - _sum(self.fixed)) // _sum(self.session))

    def lines(self, sessions: int) -> list[str]:
        """The sum, written out, and how much of it is an estimate."""
        each = f"{sessions} sessions" if sessions > 1 else "one session"
        estimated = gigabytes(_sum(line for line in self.fixed if line.estimated))
        return [
            *(str(line) for line in self.fixed),
            *(str(line) for line in self.session),
            f"{gigabytes(self.nbytes(sessions)):>9}  with {each}, {estimated} of it estimates",
            *(f"{line} of the host's memory" for line in self.host),
        ]


def plan_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    kv_format: KVFormat = PLAIN_KV,
    *,
    text_here: bool = True,
    streams: Sequence[AnyStreamConfig] = (),
    batch: int = 1,
    plans: Sequence[PlanBytes] = (),
) -> MemoryPlan:
    """What a process takes that has all networks of a model, with its text encoder on the device if it is here.

    It runs `streams`, or else the model's own, up to `batch` of them in a pass, and keeps free what
    `engines.streaming.builder` keeps free. A text encoder that `plans` run has its layers in them, each in every
    one; other stages keep their networks beside.
    """
    kinds = streams or config.streams
    networks, kept = parameter_bytes(config, dtype), largest_session_bytes(config, kinds, dtype, kv_format)
    pixels = max(kind.height * kind.width for kind in kinds)
    tokens = batch * max(_pass_frames(kind) * kind.frame_tokens for kind in kinds)
    decoding = WAN_DECODING_PER_PIXEL if isinstance(config.vae, VAEConfig) else DECODING_PER_PIXEL
    encoding = (
        WAN_ENCODING_PER_PIXEL if isinstance(config.encoder or config.vae, VAEConfig) else DECODING_PER_PIXEL
    )
    by_plans = any(found.stage == "text" for found in plans)
    embedding = config.text_encoder.vocab * config.text_encoder.dim * dtype.itemsize
    text = MemoryLine("text encoder", embedding if by_plans else networks.text_encoder)
    quantization = config.transformer.quantization
    weights = str(dtype).removeprefix("torch.") if quantization is None else quantization.weights
    of_pictures = kept.encoder + kept.slot_choice
    restyling = (MemoryLine("a session's caches of the encoder", of_pictures),) if of_pictures else ()
    fixed = (
        MemoryLine("CUDA and its libraries", CONTEXT_BYTES, estimated=True),
        MemoryLine("left free for graphs and workspaces", RESERVE_BYTES),
        MemoryLine(f"transformer, {weights}", networks.transformer),
        MemoryLine(
            f"the largest pass, {tokens} tokens",
            int(WORKSPACE_PER_VALUE * tokens * config.transformer.ffn_dim),
            estimated=True,
        ),
        MemoryLine("decoder" if config.encoder is None else "decoder and encoder", networks.codec),
        MemoryLine("decoding a block", pixels * decoding * dtype.itemsize // 2, estimated=True),
        *(
            (MemoryLine("encoding a block", pixels * encoding * dtype.itemsize // 2, estimated=True),)
            if of_pictures
            else ()
        ),
        MemoryLine("a decoder's cache and a prompt to spare", kept.decoder + kept.prompt),
        *((text,) if text_here else ()),
        *(line for found in plans for line in _lines_of(found)),
    )
    session = (
        MemoryLine(f"a session's window, {_kept_as(kv_format)}", kept.window),
        MemoryLine("a session's raw keys and prompt", kept.raw_keys + kept.prompt),
        MemoryLine("a session's cache of the decoder", kept.decoder),
        *restyling,
    )
    return MemoryPlan(fixed, session, () if text_here else (text,))


def _lines_of(found: PlanBytes) -> tuple[MemoryLine, MemoryLine]:
    return (
        MemoryLine(f"plans of the {found.stage}", found.plans),
        MemoryLine(f"activations of the largest plan of the {found.stage}", found.activations, estimated=True),
    )


def _pass_frames(stream: AnyStreamConfig) -> int:
    """Of one stream in its largest pass: a recache before the window rolls, or all rows of a stream batch."""
    if isinstance(stream, VideoStreamConfig):
        return max(stream.first_block_frames, len(stream.steps) * stream.block_frames)
    return stream.window_frames


def gigabytes(nbytes: int) -> str:
    """In units of 10^9 bytes, or of 10^6 where that is more telling."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def _kept_as(kv_format: KVFormat) -> str:
    kinds = {"keys": kv_format.int8_keys, "values": kv_format.int8_values}
    return " and ".join(f"{name} {'INT8' if int8 else 'plain'}" for name, int8 in kinds.items())


def _sum(lines: Iterable[MemoryLine]) -> int:
    return sum(line.nbytes for line in lines)

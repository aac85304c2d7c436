"""Exact snapshots of video streams: all that one holds, to go on bit for bit on the same kind of device.

The format is that of `engines.streaming.snapshot`. What an encoder remembers of the pictures is not in it: that
belongs to where the encoder runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from engines.cache.prompt_kv import PromptKV
from engines.cache.rolling_window import Lane
from engines.config.video_stream import VideoStreamConfig
from engines.device.memory_budget import typed_out_of_memory
from engines.errors import SnapshotError, StreamError
from engines.sampling.noise import SeededNoise
from engines.streaming.snapshot import (
    EXACT_REMEDY,
    VIDEO,
    add_decoder,
    consistent,
    machine_of,
    require_same,
    require_shape,
    restored_decoder,
)
from engines.streaming.snapshot_format import pack, unpack
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.stream import BatchRow, VideoStream

MOST_BLOCKS = 1 << 30
"""Of a stream: its passes are counted in 32 bits on the device."""


def take_exact(video: VideoGenerator, stream: VideoStream) -> bytes:
    """Everything that the stream holds. Raises StreamError unless all its blocks are made and decoded."""
    stream.require_between_blocks()
    if not isinstance(stream.noise, SeededNoise):
        raise SnapshotError(f"the stream's noise is a {type(stream.noise).__name__}, not made from its seed")
    if stream.decoder is not None and stream.decoded_blocks != stream.blocks:
        raise StreamError(f"{stream.blocks} blocks are made but {stream.decoded_blocks} decoded; decode first")
    prompts = _prompts(stream)
    tensors = {f"recent.{i}": latents for i, latents in enumerate(stream.recent)}
    tensors |= {f"prompt.{i}": prompt.rows for i, prompt in enumerate(prompts)}
    tensors |= {f"row.{i}": row.latents for i, row in enumerate(stream.rows) if row is not None}
    tensors |= {f"cache.{name}": tensor for name, tensor in _windows(video, stream).items()}
    facts: dict[str, Any] = {
        VIDEO: asdict(stream.config),
        "loop": stream.loop,
        "progress": [list(lane) for lane in stream.progress],
        "rows": [_row_facts(row, prompts) for row in stream.rows],
        "prompts": [prompt.text for prompt in prompts],
        "prompt": None if stream.prompt is None else prompts.index(stream.prompt),
        "recent": len(stream.recent),
        "position": stream.position,
        "entered": stream.entered,
        "blocks": stream.blocks,
        "decoded_blocks": stream.decoded_blocks,
    }
    add_decoder(stream.decoder, tensors, facts)
    return pack("exact", tensors, facts | machine_of(video.beside))


def restore(video: VideoGenerator, data: bytes) -> VideoStream:
    """Open the stream that `data` holds.

    Raises SnapshotError if the bytes are damaged, of another version, model, device, torch or threads, or of a
    stream that makes videos from prompts alone, and PoolFull if there is no room; nothing is open then.
    """
    _, tensors, facts = unpack(data)
    if VIDEO not in facts:
        raise SnapshotError("the snapshot is of a stream without pictures, which does not restyle a video")
    require_same(facts, {"quantization": None, "loras": None} | machine_of(video.beside), EXACT_REMEDY)
    with consistent():
        made = facts[VIDEO]
        stream = video.open(VideoStreamConfig(**made | {"steps": tuple(made["steps"])}))
        try:
            with typed_out_of_memory("a restored stream"):
                _fill(video, stream, tensors, facts)
        except BaseException:
            video.close(stream)
            raise
        return stream


def _text_of(prompt: PromptKV) -> Prompt:
    """What a prompt's keys and values were made of."""
    assert isinstance(prompt.key, Prompt)
    return prompt.key


def _prompts(stream: VideoStream) -> list[Prompt]:
    return list(dict.fromkeys(_text_of(prompt) for prompt in stream.held_prompts))


def _row_facts(row: BatchRow | None, prompts: list[Prompt]) -> tuple[int | None, int, int] | None:
    return None if row is None else (row.block, row.position, prompts.index(_text_of(row.prompt)))


def _windows(video: VideoGenerator, stream: VideoStream) -> dict[str, Tensor]:
    """What the stream's windows hold, by name: views."""
    states = [
        video.beside.cache.state(lane, progress.filled)
        for lane, progress in zip(stream.lanes, stream.progress, strict=True)
    ]
    return {f"{number}.{name}": part for number, state in enumerate(states) for name, part in state.items()}


def _fill(video: VideoGenerator, stream: VideoStream, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    device, dtype = video.beside.cache.device, video.beside.cache.layout.dtype
    prompts = [Prompt(text, tensors[f"prompt.{i}"].to(device)) for i, text in enumerate(facts["prompts"])]
    if facts["loop"] not in ("plain", "batch"):
        raise ValueError(f"loop {str(facts['loop'])[:40]!r}")
    stream.loop = facts["loop"]
    stream.progress = tuple(Lane(*_counts("a window", lane, len(Lane._fields))) for lane in facts["progress"])
    if len(stream.progress) != len(stream.lanes):
        raise ValueError(f"{len(stream.progress)} windows, where the stream has {len(stream.lanes)}")
    names = ("position", "entered", "blocks", "decoded_blocks")
    counts = _counts("a stream", [facts[name] for name in names], len(names))
    stream.position, stream.entered, stream.blocks, stream.decoded_blocks = counts
    if max(lane.filled for lane in stream.progress) > stream.window.frames or stream.blocks > stream.entered:
        raise ValueError(f"windows {stream.progress}, {stream.blocks} of {stream.entered} blocks")
    for part, here in _windows(video, stream).items():
        kept = tensors[f"cache.{part}"]
        require_shape(f"cache.{part}", kept, tuple(here.shape))
        if kept.dtype != here.dtype:
            raise ValueError(f"cache.{part} in {kept.dtype}, where the stream keeps {here.dtype}")
        here.copy_(kept)
    if facts["prompt"] is not None:
        video.set_prompt(stream, prompts[facts["prompt"]])
    first = stream.blocks - facts["recent"]
    for number in range(facts["recent"]):
        frames = stream.config.blocks.frames_of(first + number)
        stream.recent.append(_latents(video, stream, tensors[f"recent.{number}"], frames).to(device, dtype))
    if stream.entered > 0 and stream.prompt is None:
        raise ValueError(f"{stream.entered} blocks, prompt {facts['prompt']}")
    stream.rows = _rows(video, stream, tensors, facts["rows"], prompts)
    stream.decoder = restored_decoder(stream.decoder, tensors, facts, device)


def _rows(
    video: VideoGenerator,
    stream: VideoStream,
    tensors: dict[str, Tensor],
    rows: Sequence[Any],
    prompts: list[Prompt],
) -> tuple[BatchRow | None, ...]:
    """The blocks on their way, with the noise that is drawn for them."""
    if len(rows) not in (0, stream.steps - 1):
        raise ValueError(f"{len(rows)} rows, where a stream batch has {stream.steps - 1}")
    device, dtype = video.beside.cache.device, video.beside.cache.layout.dtype
    made: list[BatchRow | None] = []
    taken: list[PromptKV] = []
    try:
        for number, row in enumerate(rows):
            if row is None:
                made.append(None)
                continue
            block, position, prompt = row
            _counts("a row", [position, prompt, 0 if block is None else block], 3)
            latents = _latents(video, stream, tensors[f"row.{number}"], stream.config.block_frames)
            noise = None if block is None else _noise(stream, block, tuple(latents.shape)).to(device, dtype)
            taken.append(video.beside.take_prompt(prompts[prompt]))
            made.append(BatchRow(block, latents.to(device, dtype), noise, position, taken[-1]))
    except BaseException:
        for prompt_kv in taken:
            video.beside.cache.prompts.give_back(prompt_kv)
        raise
    return tuple(made)


def _noise(stream: VideoStream, block: int, shape: tuple[int, ...]) -> Tensor:
    return torch.stack([stream.noise.draw(block, draw, shape) for draw in range(stream.steps)])


def _latents(video: VideoGenerator, stream: VideoStream, latents: Tensor, frames: int) -> Tensor:
    """ValueError unless they are latents of so many frames of the stream."""
    require_shape("latents", latents, stream.config.latent_shape(video.beside.config.latent_channels, frames))
    if not latents.is_floating_point():
        raise ValueError(f"latents in {latents.dtype}, where they are floating point")
    return latents


def _counts(what: str, values: Sequence[Any], count: int) -> list[int]:
    """ValueError unless all are counts of what a stream can have."""
    if len(values) != count or not all(isinstance(value, int) and 0 <= value <= MOST_BLOCKS for value in values):
        raise ValueError(f"{what} of {str(values)[:60]}")
    return list(values)

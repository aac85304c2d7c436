"""Snapshots of video streams, in the format of `engines.streaming.snapshot`.

An **exact** one holds all that a stream does, which goes on bit for bit on the same kind of device, and, where
it is handed in, what its encoder remembers of the pictures. A **light** one holds the inputs of the opening and of
the last blocks: they are played again. The stream is then near what it would have been, and the same each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from engines.cache.prompt_kv import PromptKV
from engines.cache.rolling_window import Lane
from engines.config.video_stream import LOOPS, VideoStreamConfig
from engines.device.memory_budget import typed_out_of_memory
from engines.errors import SnapshotError
from engines.streaming.snapshot import (
    EXACT_REMEDY,
    VIDEO,
    add_cache,
    consistent,
    identity_for,
    machine_of,
    read_rebuilt,
    require_prompts,
    require_same,
    require_seeded,
    require_shape,
    restored_cache,
)
from engines.streaming.snapshot_format import Kind, Parts, pack, unpack
from engines.text.prompt import Prompt
from engines.video.generator import VideoGenerator
from engines.video.input import BlockInput, InputState
from engines.video.input_snapshot import add_input
from engines.video.kept_inputs import KeptInput, KeptInputs
from engines.video.replay import resume
from engines.video.stream import BatchRow, VideoStream
from kernels.slot_choice.slot_queue import widened

COUNTS = ("position", "entered", "blocks", "decoded_blocks")
"""What a stream counts."""

PROGRESS = ("opening", "entered", "blocks", "on_their_way")

MOST_BLOCKS = 1 << 30
"""Of a stream: its passes are counted in 32 bits on the device."""


def take_exact(video: VideoGenerator, stream: VideoStream, input_state: InputState | None = None) -> bytes:
    """Everything that the stream holds, and what its encoder does.

    Raises StreamError unless all is decoded, or if it is suspended.
    """
    stream.require_windows()
    prompts = _prompts(stream)
    tensors, facts = _common(stream, prompts)
    tensors |= {f"row.{i}": row.latents for i, row in enumerate(stream.rows) if row is not None}
    tensors |= {f"cache.{name}": tensor for name, tensor in _windows(video, stream).items()}
    facts |= {
        "progress": [list(lane) for lane in stream.progress],
        "rows": [_row_facts(row, prompts) for row in stream.rows],
    }
    if stream.decoder is not None:
        add_cache("decoder", stream.decoder, tensors, facts)
    if input_state is not None:
        add_input(input_state, tensors, facts)
    return pack("exact", tensors, facts | machine_of(video.beside))


def exact_bytes(video: VideoGenerator, stream: VideoStream, input_state: InputState) -> int:
    """About how much `take_exact` makes: windows and the encoder's cache, beside which the rest is small."""
    return input_state.cache.nbytes + sum(part.nbytes for part in _windows(video, stream).values())


def take_light(video: VideoGenerator, stream: VideoStream) -> bytes:
    """What the stream can be rebuilt from. Raises StreamError unless all its blocks are made and decoded."""
    return pack("light", *light_parts(video, stream))


def light_parts(video: VideoGenerator, stream: VideoStream) -> Parts:
    """Tensors and facts of a light snapshot; the tensors are the stream's own."""
    tensors, facts = _common(stream, _prompts(stream))
    return Parts(tensors, facts | video.beside.identity)


class VideoSnapshot(NamedTuple):
    """A snapshot that has been read: whole, and on no device yet. Whether it can go on anywhere is not known."""

    kind: Kind
    config: VideoStreamConfig
    parts: Parts


def read_snapshot(data: bytes) -> VideoSnapshot:
    """What `data` holds, on no device. Raises SnapshotError for damage, and for a stream without pictures."""
    kind, tensors, facts = unpack(data)
    return snapshot_of(kind, Parts(tensors, facts))


def snapshot_of(kind: Kind, parts: Parts) -> VideoSnapshot:
    """The snapshot that `parts` make. Raises SnapshotError for those of a stream without pictures."""
    if VIDEO not in parts.facts:
        raise SnapshotError("the snapshot is of a stream without pictures, which does not restyle a video")
    with consistent():
        made = parts.facts[VIDEO]
        return VideoSnapshot(kind, VideoStreamConfig(**made | {"steps": tuple(made["steps"])}), parts)


def restore(video: VideoGenerator, data: bytes | VideoSnapshot, *, suspended: bool = False) -> VideoStream:
    """Open the stream that `data` holds; where it is light, and to be `suspended`, without taking any room.

    A light one is resumed by its kept inputs, as one more of its `rebuilt_before`.

    Raises SnapshotError if the bytes are damaged, of another version or model, (exact) of another device, torch or
    threads, or of a stream that makes videos from prompts alone, and PoolFull if there is no room; nothing is open
    then.
    """
    kind, config, (tensors, facts) = read_snapshot(data) if isinstance(data, bytes) else data
    wanted = {"quantization": None, "loras": None} | identity_for(video.beside, kind, facts)
    require_same(facts, wanted, "it cannot continue here")
    if kind == "exact":
        require_same(facts, machine_of(video.beside), EXACT_REMEDY)
    with consistent():
        require_prompts(video.beside, tensors, len(facts["prompts"]))
        opening, *_ = _counts("a stream", [facts[name] for name in PROGRESS], len(PROGRESS))
        is_light = kind == "light"
        stream = (video.suspended if is_light else video.open)(config, opening=opening)
        try:
            with typed_out_of_memory("a restored stream"):
                prompts = _read_prompts(video, tensors, facts["prompts"])
                _fill(video, stream, Parts(tensors, facts), prompts)
                if not is_light:
                    _fill_exact(video, stream, Parts(tensors, facts), prompts)
                elif not suspended:
                    resume(video, stream)
        except BaseException:
            video.close(stream)
            raise
        return stream


def _common(stream: VideoStream, prompts: list[Prompt]) -> Parts:
    """What both kinds hold."""
    stream.require_between_blocks()
    require_seeded(stream.noise)
    stream.require_decoded()
    inputs = list(stream.inputs)
    tensors = {f"recent.{i}": latents for i, latents in enumerate(stream.recent)}
    tensors |= {f"prompt.{i}": prompt.rows for i, prompt in enumerate(prompts)}
    tensors |= {f"kept.{i}": kept.input.latents for i, kept in enumerate(inputs)}
    facts: dict[str, Any] = {
        VIDEO: asdict(stream.config),
        "loop": stream.loop,
        "prompts": [prompt.text for prompt in prompts],
        "prompt": None if stream.prompt is None else prompts.index(stream.prompt),
        "inputs": [_input_facts(kept, prompts) for kept in inputs],
        "recent": len(stream.recent),
        "opening": stream.opening,
        "renewing": stream.renewing,
        "on_their_way": stream.on_their_way,
        "rebuilt_before": stream.rebuilt_before,
    }
    counts = (stream.position, stream.entered, stream.blocks, stream.decoded_blocks)
    return Parts(tensors, facts | dict(zip(COUNTS, counts, strict=True)))


def _input_facts(kept: KeptInput, prompts: list[Prompt]) -> tuple[int, float, int, int, int, bool]:
    number, _, noise_scale, timestep = kept.input
    return number, noise_scale, timestep, kept.position, prompts.index(kept.prompt), kept.renews


def _text_of(prompt: PromptKV) -> Prompt:
    """What a prompt's keys and values were made of."""
    assert isinstance(prompt.key, Prompt)
    return prompt.key


def _prompts(stream: VideoStream) -> list[Prompt]:
    """All that the stream refers to, each once."""
    stream.require_open()
    held = [_text_of(prompt) for prompt in stream.held_prompts]
    in_force = [] if stream.prompt is None else [stream.prompt]
    return list(dict.fromkeys([*in_force, *held, *(kept.prompt for kept in stream.inputs)]))


def _row_facts(row: BatchRow | None, prompts: list[Prompt]) -> tuple[int | None, int, int, int] | None:
    if row is None:
        return None
    return row.block, row.position, prompts.index(_text_of(row.prompt)), row.beside


def _windows(video: VideoGenerator, stream: VideoStream) -> dict[str, Tensor]:
    """What the stream's windows hold, by name: views."""
    states = [
        video.beside.cache.state(lane, progress.filled)
        for lane, progress in zip(stream.lanes, stream.progress, strict=True)
    ]
    return {f"{number}.{name}": part for number, state in enumerate(states) for name, part in state.items()}


def _read_prompts(video: VideoGenerator, tensors: dict[str, Tensor], texts: Sequence[str]) -> list[Prompt]:
    device = video.beside.cache.device
    return [Prompt(text, tensors[f"prompt.{i}"].to(device)) for i, text in enumerate(texts)]


def _fill(video: VideoGenerator, stream: VideoStream, parts: Parts, prompts: list[Prompt]) -> None:
    """Give an empty stream what both kinds hold; one that is suspended stays so."""
    tensors, facts = parts
    device, dtype = video.beside.cache.device, video.beside.cache.layout.dtype
    if facts["loop"] not in LOOPS:
        raise ValueError(f"loop {str(facts['loop'])[:40]!r}")
    stream.loop = facts["loop"]
    counts = _counts("a stream", [facts[name] for name in PROGRESS], len(PROGRESS))
    opening, entered, blocks, on_their_way = counts
    opened = max(entered - opening, 1)
    if blocks + on_their_way > entered or not on_their_way < min(opened, stream.steps) or opening > entered:
        raise ValueError(f"{blocks} of {entered} blocks since {opening}, {on_their_way} on their way")
    stream.inputs = _inputs(video, stream, parts, prompts)
    counts = _counts("a stream", [facts[name] for name in COUNTS], len(COUNTS))
    stream.position, stream.entered, stream.blocks, stream.decoded_blocks = counts
    stream.set_aside = on_their_way if stream.is_suspended else 0
    stream.rebuilt_before = read_rebuilt(facts)
    if facts["prompt"] is not None and stream.is_suspended:
        stream.prompt = prompts[facts["prompt"]]
    elif facts["prompt"] is not None:
        video.set_prompt(stream, prompts[facts["prompt"]])
    if stream.entered > 0 and facts["prompt"] is None:
        raise ValueError(f"{stream.entered} blocks, prompt None")
    stream.recent.clear()
    first = stream.blocks - facts["recent"]
    if first < stream.opening or (stream.blocks > stream.opening) != (facts["recent"] > 0):
        raise ValueError(f"latents of {facts['recent']} blocks of {stream.blocks}")
    for number in range(facts["recent"]):
        frames = stream.frames_of(first + number)
        stream.recent.append(_latents(video, stream, tensors[f"recent.{number}"], frames).to(device, dtype))
    if facts["renewing"] not in (False, True):
        raise ValueError(f"renewing {str(facts['renewing'])[:40]!r}")
    stream.renewing = facts["renewing"]


def _fill_exact(video: VideoGenerator, stream: VideoStream, parts: Parts, prompts: list[Prompt]) -> None:
    tensors, facts = parts
    stream.progress = tuple(Lane(*_counts("a window", lane, len(Lane._fields))) for lane in facts["progress"])
    if len(stream.progress) != len(stream.lanes):
        raise ValueError(f"{len(stream.progress)} windows, where the stream has {len(stream.lanes)}")
    if max(lane.filled for lane in stream.progress) > stream.window.frames:
        raise ValueError(f"windows {stream.progress} of {stream.window.frames} frames")
    for part, here in _windows(video, stream).items():
        kept = tensors[f"cache.{part}"]
        kept = widened(kept) if part.endswith(".records") else kept
        require_shape(f"cache.{part}", kept, tuple(here.shape))
        if kept.dtype != here.dtype:
            raise ValueError(f"cache.{part} in {kept.dtype}, where the stream keeps {here.dtype}")
        here.copy_(kept)
    stream.rows = _rows(video, stream, tensors, facts["rows"], prompts)
    if stream.decoder is not None:
        device = video.beside.cache.device
        stream.decoder = restored_cache("decoder", stream.decoder, tensors, facts, device)


def _inputs(video: VideoGenerator, stream: VideoStream, parts: Parts, prompts: list[Prompt]) -> KeptInputs:
    """ValueError unless they are inputs of the opening and of the last blocks that have begun."""
    tensors, facts = parts
    device, dtype = video.beside.cache.device, video.beside.cache.layout.dtype
    made = KeptInputs(stream.config, opening=stream.opening)
    for at, (number, noise_scale, timestep, position, prompt, renews) in enumerate(facts["inputs"]):
        _counts("an input", [number, timestep, position, prompt], 4)
        if not 0 < noise_scale <= 1 or timestep > 1000 or position > stream.config.refresh_at:
            raise ValueError(f"an input at {position}, noise {noise_scale}, timestep {timestep}")
        frames = stream.frames_of(number)
        latents = _latents(video, stream, tensors[f"kept.{at}"], frames).to(device, dtype)
        entered = BlockInput(number, latents, float(noise_scale), timestep)
        made.append(KeptInput(entered, position, prompts[prompt], renews is True))
    numbers = [kept.number for kept in made]
    if numbers != [number for number, *_ in facts["inputs"]] or not made.can_follow(facts["entered"]):
        raise ValueError(f"inputs of blocks {str(numbers)[:60]} of {facts['entered']}")
    return made


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
            block, position, prompt, *beside = row
            beside = beside or [stream.entered]  # Not said by earlier releases.
            _counts("a row", [position, prompt, 0 if block is None else block, *beside], 4)
            latents = _latents(video, stream, tensors[f"row.{number}"], stream.config.block_frames)
            noise = None if block is None else stream.noise_prefetcher.draw(block).to(device)
            taken.append(video.beside.take_prompt(prompts[prompt]))
            made.append(BatchRow(block, latents.to(device, dtype), noise, position, taken[-1], *beside))
    except BaseException:
        for prompt_kv in taken:
            video.beside.cache.prompts.give_back(prompt_kv)
        raise
    return tuple(made)


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

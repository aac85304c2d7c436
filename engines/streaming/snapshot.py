"""Snapshots: the bytes from which a stream continues in another process.

An **exact** one holds the window, its raw keys and the decoder's cache; the stream goes on bit for bit, on the
same kind of device with the same torch (and, on a CPU, threads). A **light** one holds what they can be rebuilt
from (`Generator.rebuild`): the latents of the window and of the decoder's receptive field, the prompt, and the
passes that wrote the frame sink.

Both are a safetensors file: tensors, and in its metadata a JSON object `snapshot` and a `checksum` over all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engines.cache.kv_cache import KVFormat
from engines.config.stream import StreamConfig
from engines.device.memory_budget import typed_out_of_memory
from engines.errors import SnapshotError
from engines.sampling.noise import Noise, SeededNoise
from engines.streaming.generator import Generator
from engines.streaming.snapshot_format import Kind, Parts, pack, unpack
from engines.streaming.state import SinkPass
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.vae.conv_cache import ConvCache

LATENTS = ("recent.", "sink.")
PROMPTS = "prompt."
"""How the names of tensors begin that both kinds hold."""


MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
"""What facts raise that are not of the form that they are written in."""


VIDEO = "video"
"""The fact that only a video stream's snapshot has."""


EXACT_REMEDY = "an exact snapshot needs the same; a light one does not"


MOST_BLOCKS = 1 << 50
"""Of a stream; the noise of a later one would have no number."""

MOST_REBUILT = 1 << 17
"""Times that a stream was rebuilt: once a minute for three months."""


class Snapshot(NamedTuple):
    """A snapshot that has been read: whole, and on no device yet. Whether it can go on anywhere is not known."""

    kind: Kind
    config: StreamConfig
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Restored(NamedTuple):
    """A stream that goes on where a snapshot was taken, and the kind of snapshot it was."""

    stream: Stream
    kind: Kind


def take_exact(generator: Generator, stream: Stream) -> bytes:
    """Everything the stream holds. Raises StreamError unless all its blocks are decoded, or if it is suspended."""
    stream.require_window()
    tensors, facts = _common(stream, stream.sink_passes)
    tensors |= {f"cache.{name}": tensor for name, tensor in _window(generator, stream).items()}
    if stream.decoder is not None:
        add_cache("decoder", stream.decoder, tensors, facts)
    facts |= {"context_due": stream.context_due, "recache_due": stream.recache_due}
    return pack("exact", tensors, facts | machine_of(generator))


def exact_bytes(generator: Generator, stream: Stream) -> int:
    """About how much `take_exact` makes: the window, beside which the rest is small."""
    return sum(part.nbytes for part in _window(generator, stream).values())


def take_light(generator: Generator, stream: Stream) -> bytes:
    """What the stream can be rebuilt from. Raises StreamError unless all its blocks are decoded."""
    return pack_light(*light_parts(generator, stream))


def light_parts(generator: Generator, stream: Stream) -> Parts:
    """Tensors and facts of a light snapshot; the tensors are the stream's own."""
    tensors, facts = _common(stream, stream.permanent_sink_passes)
    return Parts(tensors, facts | generator.identity)


def pack_light(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """A light snapshot from its parts."""
    return pack("light", tensors, facts)


def machine_of(generator: Generator) -> dict[str, Any]:
    """What has to be the same where a stream is to go on bit for bit: networks, device, torch.

    On a CPU the threads change a sum's last bits.
    """
    device = generator.cache.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return generator.identity | {"device": name, "torch": torch.__version__, "threads": threads}


def read_snapshot(data: bytes) -> Snapshot:
    """What `data` holds, on no device and in no more memory than the bytes. Raises SnapshotError for damage."""
    kind, tensors, facts = unpack(data)
    return snapshot_of(kind, Parts(tensors, facts))


def snapshot_of(kind: Kind, parts: Parts) -> Snapshot:
    """The snapshot that `parts` make. Raises SnapshotError for those of a stream that restyles a video."""
    tensors, facts = parts
    if VIDEO in facts:
        raise SnapshotError(
            "the snapshot is of a stream that restyles a video, which does not go on from a prompt"
        )
    with consistent():
        return Snapshot(kind, _config(facts), tensors, facts)


def restore(generator: Generator, data: bytes | Snapshot, *, suspended: bool = False) -> Restored:
    """Open the stream that `data` holds; where it is light, and to be `suspended`, without taking any room.

    Raises SnapshotError if the bytes are damaged, of another version or model, or (exact) of another device,
    torch, threads or format of keys and values, and PoolFull if there is no room; nothing is open then. How large
    the stream is follows from the snapshot's `config`, which whoever got the bytes from somebody else reads, and
    checks, before.
    """
    snapshot = read_snapshot(data) if isinstance(data, bytes) else data
    kind, facts = snapshot.kind, snapshot.facts
    # Nothing is named where nothing is quantized or merged.
    wanted = {"quantization": None, "loras": None} | identity_for(generator, kind, facts)
    require_same(facts, wanted, "it cannot continue here")
    if kind == "exact":
        require_same(facts, machine_of(generator), EXACT_REMEDY)
    with consistent():
        if kind == "exact":
            _require_same_window(generator, snapshot.tensors)
        _check(generator, snapshot)
        return Restored(_open(generator, snapshot, suspended=suspended and kind == "light"), kind)


def read_config(data: bytes) -> StreamConfig:
    """How the stream that `data` holds is set up. Raises SnapshotError as `restore` does for damaged bytes."""
    return read_snapshot(data).config


@contextmanager
def consistent() -> Iterator[None]:
    """Raise SnapshotError for facts that are not of the form that they are written in."""
    try:
        yield
    except MALFORMED as error:
        raise SnapshotError(f"the snapshot is inconsistent: {error!r}") from error


def require_seeded(noise: Noise) -> None:
    """Raise SnapshotError for noise that cannot be drawn again elsewhere."""
    if not isinstance(noise, SeededNoise):
        raise SnapshotError(f"the stream's noise is a {type(noise).__name__}, not made from its seed")


def read_rebuilt(facts: dict[str, Any]) -> list[int]:
    """The blocks before which a snapshot's stream was rebuilt. Raises ValueError for what no stream has."""
    blocks = facts["rebuilt_before"]
    if not isinstance(blocks, list) or len(blocks) > MOST_REBUILT:
        raise ValueError(f"rebuilt_before is {str(blocks)[:40]}; at most {MOST_REBUILT} blocks are read")
    if not all(isinstance(block, int) and 0 <= block <= MOST_BLOCKS for block in blocks):
        raise ValueError(f"rebuilt_before is {str(blocks)[:40]}, which are not blocks")
    return blocks.copy()


def _common(stream: Stream, sink_passes: Sequence[SinkPass]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What both kinds hold."""
    stream.require_open()
    stream.require_decoded()
    require_seeded(stream.noise)
    prompts = [sink_pass.prompt for sink_pass in sink_passes]
    if stream.prompt is not None:
        prompts.append(stream.prompt)
    prompts = list(dict.fromkeys(prompts))
    tensors = {f"recent.{i}": latents for i, latents in enumerate(stream.recent)}
    tensors |= {f"prompt.{i}": prompt.rows for i, prompt in enumerate(prompts)}
    tensors |= {f"sink.{i}": sink_pass.latents for i, sink_pass in enumerate(sink_passes)}
    facts = {
        "stream": asdict(stream.config),
        "blocks": stream.blocks,
        "decoded_blocks": stream.decoded_blocks,
        "recent": len(stream.recent),
        "rebuilt_before": stream.rebuilt_before,
        "prompts": [prompt.text for prompt in prompts],
        "prompt": None if stream.prompt is None else prompts.index(stream.prompt),
        "sink_passes": [(x.first_frame, x.timestep, prompts.index(x.prompt), x.lane) for x in sink_passes],
    }
    return tensors, facts


def _window(generator: Generator, stream: Stream) -> dict[str, Tensor]:
    """What the stream's slots hold, by name: views."""
    frames = min(stream.latent_frames, stream.policy.frames)
    states = [generator.cache.state(lane, frames) for lane in stream.lanes]
    return {f"{number}.{name}": part for number, state in enumerate(states) for name, part in state.items()}


def identity_for(generator: Generator, kind: Kind, facts: dict[str, Any]) -> dict[str, str]:
    """Networks that must be the same: a process that decodes nothing names no codec in its light snapshots.

    They hold nothing that a codec has made.
    """
    identity = generator.identity
    if kind == "light" and "codec" not in facts:
        return {name: mark for name, mark in identity.items() if name not in ("codec", "encoder")}
    return identity


def require_same(facts: dict[str, Any], wanted: dict[str, Any], remedy: str) -> None:
    """Raise SnapshotError unless a snapshot was taken from what is `wanted`."""
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise SnapshotError(f"the snapshot's {name} is {facts.get(name)}, here it is {value}; {remedy}")


def _require_same_window(generator: Generator, tensors: dict[str, Tensor]) -> None:
    here = generator.cache.layout.kv_format
    kept = KVFormat(*(tensors[f"cache.0.{name}"].dtype == torch.int8 for name in ("keys", "values")))
    if kept != here:
        raise SnapshotError(f"the snapshot's window has {kept}, here it has {here}; {EXACT_REMEDY}")


def _config(facts: dict[str, Any]) -> StreamConfig:
    stream = facts["stream"]
    first = stream["first_steps"]
    return StreamConfig(
        **stream | {"steps": tuple(stream["steps"]), "first_steps": None if first is None else tuple(first)}
    )


def _check(generator: Generator, snapshot: Snapshot) -> None:
    """Before anything is opened: ValueError for what no stream has, and would take long to find out later."""
    config, tensors, facts = snapshot.config, snapshot.tensors, snapshot.facts
    for name, tensor in tensors.items():
        if name.startswith(LATENTS) and not tensor.is_floating_point():
            raise ValueError(f"{name} in {tensor.dtype}, where latents are floating point")
    require_prompts(generator, tensors, len(facts["prompts"]))
    for name in ("blocks", "decoded_blocks", "recent"):
        if not isinstance(facts[name], int) or not 0 <= facts[name] <= MOST_BLOCKS:
            raise ValueError(f"{str(facts[name])[:40]} {name}")
    passes = [max(1, tensors[f"sink.{i}"].shape[0]) for i in range(len(facts["sink_passes"]))]
    frames, most = sum(passes), 2 * config.window_frames * config.lanes
    if frames > most:
        raise ValueError(f"passes over {frames} frames into the sink; no stream has more than {most}")


def _open(generator: Generator, snapshot: Snapshot, *, suspended: bool) -> Stream:
    kind, config, tensors, facts = snapshot
    stream = generator.suspended(config) if suspended else generator.open(config)
    try:
        with typed_out_of_memory("a restored stream"):
            _fill(generator, stream, tensors, facts)
            if kind == "exact":
                _fill_exact(generator, stream, tensors, facts)
        if kind == "light" and not suspended:
            generator.rebuild(stream)
    except BaseException:
        generator.close(stream)
        raise
    return stream


def _fill(generator: Generator, stream: Stream, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Give an empty stream what both kinds hold."""
    device, dtype = generator.cache.device, generator.cache.layout.dtype
    here = {name: tensor.to(device, dtype) for name, tensor in tensors.items() if name.startswith(LATENTS)}
    rows = {name: tensor.to(device) for name, tensor in tensors.items() if name.startswith(PROMPTS)}
    prompts = [Prompt(text, rows[f"{PROMPTS}{i}"]) for i, text in enumerate(facts["prompts"])]
    if facts["prompt"] is not None and stream.is_suspended:
        stream.prompt = prompts[facts["prompt"]]
    elif facts["prompt"] is not None:
        generator.set_prompt(stream, prompts[facts["prompt"]])
    stream.rebuilt_before = read_rebuilt(facts)
    stream.blocks, stream.decoded_blocks = facts["blocks"], facts["decoded_blocks"]
    if stream.blocks > 0 and stream.prompt is None:
        raise ValueError(f"{stream.blocks} blocks, prompt {facts['prompt']}")
    _fill_recent(generator, stream, [here[f"recent.{i}"] for i in range(facts["recent"])])
    stream.sink_passes = [
        SinkPass(first_frame, here[f"sink.{i}"], timestep, prompts[prompt], lane)
        for i, (first_frame, timestep, prompt, lane) in enumerate(facts["sink_passes"])
    ]
    for sink_pass in stream.sink_passes:
        frames = sink_pass.latents.shape[0]
        _require_latents(generator, stream, "latents of a sink pass", sink_pass.latents, frames)
        if not 0 <= sink_pass.first_frame <= stream.config.window_frames - frames:
            raise ValueError(f"a sink pass over {frames} frames from frame {sink_pass.first_frame}")
        if not 0 <= sink_pass.lane < stream.config.lanes:
            raise ValueError(f"a sink pass into window {sink_pass.lane} of {stream.config.lanes}")


def _fill_recent(generator: Generator, stream: Stream, recent: Sequence[Tensor]) -> None:
    """The stream's last blocks; ValueError if they are not, or not enough for a recache."""
    blocks = stream.config.blocks
    for number, latents in enumerate(recent, stream.blocks - len(recent)):
        _require_latents(generator, stream, "latents", latents, blocks.frames_of(number))
        stream.recent.append(latents)
    needed = min(stream.latent_frames, stream.config.window_frames)
    if len(recent) > stream.blocks or stream.recent.frames < needed:
        raise ValueError(f"latents of {stream.recent.frames} frames, where {needed} are needed")


def _fill_exact(generator: Generator, stream: Stream, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Give a stream the state that only an exact snapshot holds."""
    for part, here in _window(generator, stream).items():
        name = f"cache.{part}"
        kept = tensors[name]
        require_shape(name, kept, tuple(here.shape))
        if kept.dtype != here.dtype:
            raise ValueError(f"{name} in {kept.dtype}, where the stream keeps {here.dtype}; ask for its kernels")
        here.copy_(kept)
    stream.context_due, stream.recache_due = facts["context_due"], facts["recache_due"]
    if stream.decoder is not None:
        stream.decoder = restored_cache("decoder", stream.decoder, tensors, facts, generator.cache.device)


def add_cache(name: str, cache: ConvCache, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Put what the network `name` remembers of a stream into an exact snapshot."""
    frames = cache.frames
    tensors |= {f"{name}.{slot}": tensor for slot, tensor in enumerate(frames) if tensor is not None}
    facts |= {f"{name}_frames_seen": cache.frames_seen, f"{name}_slots": len(frames)}


def restored_cache(
    name: str, empty: ConvCache, tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device
) -> ConvCache:
    """What a network remembers by an exact snapshot, where it begins with `empty`. ValueError if it is another."""
    if facts[f"{name}_slots"] != len(empty.frames):
        raise ValueError(f"a {name} of {facts[f'{name}_slots']} layers, where {len(empty.frames)} are")
    slots = [tensors.get(f"{name}.{slot}") for slot in range(len(empty.frames))]
    frames = tuple(None if tensor is None else tensor.to(device) for tensor in slots)
    return ConvCache(facts[f"{name}_frames_seen"], frames)


def require_prompts(generator: Generator, tensors: dict[str, Tensor], prompts: int) -> None:
    """Raise ValueError unless the snapshot's embeddings of so many prompts fit the network."""
    text_len, text_dim = generator.config.text_len, generator.config.text_dim
    for number in range(prompts):
        rows = tensors[f"{PROMPTS}{number}"]
        if rows.dim() != 2 or rows.shape[0] > text_len or rows.shape[1] != text_dim:
            raise ValueError(
                f"prompt {number} of shape {list(rows.shape)}; at most {text_len} rows of {text_dim} fit"
            )


def _require_latents(generator: Generator, stream: Stream, what: str, latents: Tensor, frames: int) -> None:
    require_shape(what, latents, stream.config.latent_shape(generator.config.latent_channels, frames))


def require_shape(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a tensor is of `shape`."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{what} of shape {list(tensor.shape)}, where the stream has {list(shape)}")

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from engines.config.networks import TransformerConfig, VAEConfig
from engines.config.presets import preset
from engines.config.stream import StreamConfig
from engines.errors import PoolFull, SnapshotError, StreamError
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.streaming.snapshot import read_config, restore, take_exact, take_light
from engines.streaming.snapshot_format import pack, unpack
from engines.text.prompt import Prompt
from engines.vae.wan_vae import WanVAE
from engines.wan.transformer import CausalTransformer
from tests.support.generators import denoiser_for, generator_for
from tests.support.rollouts import roll, roll_pictures


class Film(NamedTuple):
    latents: Tensor
    pictures: Tensor


def test_a_light_snapshot_of_a_process_without_a_codec_goes_on_where_there_is_one(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    marks = {"transformer": model.identity["transformer"]}
    alone, beside, stranger = (
        denoiser_for(model.transformer, kept_frames=38, identity=identity)
        for identity in (marks, model.identity | {"encoder": "its own"}, marks | {"codec": "another"})
    )
    stream = alone.open(small)
    roll(alone, stream, 3, {0: prompts[0]})
    there = restore(beside, take_light(alone, stream)).stream
    assert there.blocks == 3
    assert restore(alone, take_light(beside, there)).stream.blocks == 3
    with pytest.raises(SnapshotError, match="codec is"):
        restore(stranger, take_light(beside, there))


def test_a_snapshot_goes_on_only_where_the_same_loras_are_merged(
    model: Model, small: StreamConfig, prompts: list[Prompt]
) -> None:
    plain, styled = (
        generator_for(replace(model, identity=model.identity | more)) for more in ({}, {"loras": "a"})
    )
    for there, here in ((plain, styled), (styled, plain)):
        stream = there.open(small)
        roll_pictures(there, stream, 1, {0: prompts[0]})
        for data in (take_light(there, stream), take_exact(there, stream)):
            assert restore(there, data).stream.blocks == 1
            with pytest.raises(SnapshotError, match=r"the snapshot's loras is (a|None), here it is (a|None)"):
                restore(here, data)


def continue_elsewhere(folder: Path, name: str, data: bytes, switches: dict[int, Prompt], blocks: int) -> Film:
    """What a new process makes of a snapshot."""
    folder.joinpath("snapshot").write_bytes(data)
    save_file({p.text: p.rows for p in switches.values()}, folder / "prompts")
    job = {
        "preset": name,
        "snapshot": str(folder / "snapshot"),
        "prompts": str(folder / "prompts"),
        "switches": {block: prompt.text for block, prompt in switches.items()},
        "blocks": blocks,
        "output": str(folder / "output"),
    }
    folder.joinpath("job.json").write_text(json.dumps(job))
    subprocess.run(
        [sys.executable, "-m", "tests.engines.streaming.continue_snapshot", str(folder / "job.json")], check=True
    )
    made = load_file(folder / "output")
    return Film(made["latents"], made["pictures"])


@pytest.mark.parametrize("name", ["tiny", "tiny-taehv"])
def test_a_stream_continues_in_a_new_process(tmp_path: Path, prompts: list[Prompt], name: str) -> None:
    model = Model.random(preset(name), seed=1)
    generator = generator_for(model)
    stream, later = generator.open(StreamConfig(seed=5, height=16, width=32)), {30: prompts[2]}
    roll_pictures(generator, stream, 20, {0: prompts[0], 6: prompts[1]})
    exact, light = take_exact(generator, stream), take_light(generator, stream)
    rebuilt = generator.fork(stream)
    generator.rebuild(rebuilt)
    unbroken = Film(*roll_pictures(generator, stream, 20, later))
    reference = Film(*roll_pictures(generator, rebuilt, 20, later))

    from_exact = continue_elsewhere(tmp_path, name, exact, later, 20)
    assert torch.equal(from_exact.latents, unbroken.latents)
    assert torch.equal(from_exact.pictures, unbroken.pictures)

    from_light = continue_elsewhere(tmp_path, name, light, later, 20)
    assert torch.equal(from_light.latents, reference.latents)
    assert torch.equal(from_light.pictures, reference.pictures)
    assert len(light) < len(exact)


CASES = [
    StreamConfig(height=16, width=32, sink="local"),
    StreamConfig(height=16, width=32, sink_frames=0),
    StreamConfig(height=16, width=32, sink_frames=6),
    StreamConfig(height=16, width=32, rope="absolute"),
    StreamConfig(height=16, width=32, block_frames=1, window_frames=5, sink_frames=2),
]


@pytest.mark.parametrize("config", CASES, ids=["local", "no sink", "two sink blocks", "absolute", "block of one"])
@pytest.mark.parametrize("blocks", [0, 1, 3, 4, 5, 9])
def test_both_kinds_continue_whatever_the_window(
    generator: Generator, prompts: list[Prompt], config: StreamConfig, blocks: int
) -> None:
    stream, switches = generator.open(config), {0: prompts[0], 2: prompts[1], 7: prompts[2]}
    if blocks:
        roll_pictures(generator, stream, blocks, switches)
    exact = restore(generator, take_exact(generator, stream)).stream
    light = restore(generator, take_light(generator, stream)).stream
    rebuilt = generator.fork(stream)
    generator.rebuild(rebuilt)
    assert light.rebuilt_before == rebuilt.rebuilt_before == ([blocks] if blocks else [])
    for restored, original in ((exact, stream), (light, rebuilt)):
        films = [roll_pictures(generator, s, 4, switches) for s in (restored, original)]
        assert all(torch.equal(a, b) for a, b in zip(*films, strict=True))


@pytest.mark.parametrize("sink_frames", [3, 6])
@pytest.mark.parametrize("switch", [None, 1, 2, 4, 9], ids=lambda block: f"switch at {block}")
def test_rebuilding_keeps_the_sink_and_the_decoder(
    generator: Generator, prompts: list[Prompt], sink_frames: int, switch: int | None
) -> None:
    stream = generator.open(StreamConfig(height=16, width=32, sink_frames=sink_frames))
    roll_pictures(generator, stream, 14, {0: prompts[0]} | ({} if switch is None else {switch: prompts[1]}))
    cached, decoder = generator.cache.state(stream.lanes[0], sink_frames), stream.decoder
    written = {name: part.clone() for name, part in cached.items()}
    for part in cached.values():
        part.fill_(float("nan"))
    generator.rebuild(stream)
    assert torch.equal(cached["raw_keys"], written["raw_keys"])
    assert torch.equal(cached["values"], written["values"])
    assert decoder is not None
    assert stream.decoder is not None
    for ours, wanted in zip(stream.decoder.frames, decoder.frames, strict=True):
        assert (ours is None) == (wanted is None)
        if ours is not None and wanted is not None:
            torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_a_stream_knows_where_it_was_restored(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    roll_pictures(generator, stream, 5, {0: prompts[0]})
    restored = restore(generator, take_light(generator, stream))
    assert restored.kind == "light"
    assert restored.stream.rebuilt_before == [5]


def test_a_switch_that_is_still_due_is_kept(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    roll_pictures(generator, stream, 6, {0: prompts[0]})
    generator.set_prompt(stream, prompts[1])
    exact = restore(generator, take_exact(generator, stream)).stream
    assert torch.equal(roll(generator, exact, 2, {}), roll(generator, stream, 2, {}))


@pytest.fixture
def snapshot(generator: Generator, small: StreamConfig, prompts: list[Prompt]) -> bytes:
    stream = generator.open(small)
    roll_pictures(generator, stream, 5, {0: prompts[0]})
    data = take_exact(generator, stream)
    generator.close(stream)
    return data


@pytest.mark.parametrize("at", [0.0, 0.001, 0.3, 0.999], ids=str)
def test_a_changed_byte_is_noticed(generator: Generator, snapshot: bytes, at: float) -> None:
    damaged = bytearray(snapshot)
    damaged[int(at * len(snapshot))] ^= 0x10
    with pytest.raises(SnapshotError):
        restore(generator, bytes(damaged))


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.9999], ids=str)
def test_a_truncated_snapshot_is_refused(generator: Generator, snapshot: bytes, kept: float) -> None:
    length = kept if isinstance(kept, int) else int(kept * len(snapshot))
    with pytest.raises(SnapshotError, match=f"{length} bytes are not a snapshot"):
        restore(generator, snapshot[:length])


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" * 20, save({"a": torch.ones(3)})], ids=["png", "weights"])
def test_foreign_bytes_are_refused(generator: Generator, data: bytes) -> None:
    with pytest.raises(SnapshotError, match="not a snapshot"):
        restore(generator, data)


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def many_sink_passes(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """A hundred of ten frames each."""
    latents = tensors["sink.0"][:1].repeat(10, 1, 1, 1)
    tensors.update({f"sink.{number}": latents for number in range(100)})
    facts.update(sink_passes=[[0, 0.0, 0, 0]] * 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors, facts: tensors.update({"cache.0.keys": tensors["cache.0.keys"][..., 1:]}),
            "cache.0.keys of shape",
        ),
        (lambda tensors, facts: tensors.update({"recent.2": tensors["recent.2"][:, 1:]}), "latents of shape"),
        (lambda tensors, facts: tensors.pop("recent.3"), "recent.3"),
        (lambda tensors, facts: facts.update(prompt=7), "IndexError"),
        (lambda tensors, facts: facts.update(blocks=-3), "-3 blocks"),
        (lambda tensors, facts: facts.update(prompt=None), "5 blocks, prompt None"),
        (lambda tensors, facts: facts.pop("rebuilt_before"), "rebuilt_before"),
        (lambda tensors, facts: facts.update(rebuilt_before=[0] * 200_000), "at most 131072 blocks"),
        (lambda tensors, facts: facts["stream"].update(window_frames=5), "window_frames 5"),
        (lambda tensors, facts: facts.update(sink_passes=[[11, 0.0, 0, 0]]), "from frame 11"),
        (many_sink_passes, "passes over 1000 frames into the sink"),
        (lambda tensors, facts: facts.update(decoder_slots=1 << 60), "a decoder of 1152921504606846976 layers"),
        (lambda tensors, facts: facts.update(blocks=10**400), "1000000+ blocks"),
        (lambda tensors, facts: facts.update(stream=[]), "TypeError"),
        (lambda tensors, facts: facts["stream"].update(color="red"), "color"),
        (
            lambda tensors, facts: tensors.update({"recent.2": tensors["recent.2"].long()}),
            "recent.2 in torch.int64",
        ),
        (lambda tensors, facts: tensors.update({"prompt.0": tensors["prompt.0"][:, 1:]}), "prompt 0 of shape"),
    ],
    ids=[
        "window",
        "latents",
        "block missing",
        "prompt",
        "blocks",
        "no prompt",
        "rebuilt",
        "rebuilt often",
        "config",
        "sink",
        "sinks",
        "decoder",
        "many blocks",
        "no config",
        "unknown setting",
        "whole numbers",
        "prompt rows",
    ],
)
def test_a_snapshot_made_to_mislead_is_refused(
    model: Model, generator: Generator, small: StreamConfig, snapshot: bytes, change: Change, message: str
) -> None:
    _, tensors, facts = unpack(snapshot)
    change(tensors, facts)
    room_for_one = generator_for(model, sessions=1, config=small)
    with pytest.raises(SnapshotError, match=message):
        restore(room_for_one, pack("exact", tensors, facts))
    assert room_for_one.open(small)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "cannot be read"),
        ("[]", "of version None"),
        ('{"version": 3, "kind": "other"}', "of kind 'other'"),
        ('{"version": 3, "kind": ["light"]}', "of kind"),
    ],
    ids=["deep", "list", "kind", "kinds"],
)
def test_facts_of_another_form_are_refused(text: str, words: str) -> None:
    checksum = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(SnapshotError, match=words):
        unpack(save({}, {"snapshot": text, "checksum": checksum}))


def test_a_header_that_would_take_much_more_memory_than_the_bytes_is_refused() -> None:
    data = save({}, {"snapshot": "[" + "[]," * (3 << 20) + "[]]", "checksum": ""})
    with pytest.raises(SnapshotError, match=r"the snapshot's header has .* bytes; at most 8388608 are read"):
        unpack(data)


def test_a_snapshot_of_other_weights_is_refused(small: StreamConfig, snapshot: bytes) -> None:
    other = Model.random(preset("tiny-taehv"), seed=2)
    with pytest.raises(SnapshotError, match=r"transformer is .* cannot continue here"):
        restore(generator_for(other), snapshot)


def test_an_exact_snapshot_of_another_torch_is_refused_and_a_light_one_is_not(
    generator: Generator, small: StreamConfig, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = generator.open(small)
    roll_pictures(generator, stream, 2, {0: prompts[0]})
    exact, light = take_exact(generator, stream), take_light(generator, stream)
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    with pytest.raises(SnapshotError, match=r"torch is 2\..*, here it is 3.0.0; .* a light one does not"):
        restore(generator, exact)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.raises(SnapshotError, match="threads is 1, here it is 64"):
        restore(generator, exact)
    assert restore(generator, light).stream.blocks == 2


def test_a_window_goes_to_the_device_once(
    generator: Generator, snapshot: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.Size] = []
    to = Tensor.to

    def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moved.append(tensor.shape)
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", noted)
    stream = restore(generator, snapshot).stream
    assert generator.cache.state(stream.lanes[0], 12)["keys"].shape not in moved
    assert stream.recent.last_block().shape in moved


def test_the_setting_of_a_stream_is_read_without_opening_it(snapshot: bytes, small: StreamConfig) -> None:
    assert read_config(snapshot) == small
    _, tensors, facts = unpack(snapshot)
    facts["stream"].update(window_frames=5)
    with pytest.raises(SnapshotError, match="window_frames 5"):
        read_config(pack("exact", tensors, facts))


def test_nothing_stays_reserved_when_a_snapshot_is_refused(
    model: Model, generator: Generator, small: StreamConfig, snapshot: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for_one = generator_for(model, sessions=1, config=small)
    monkeypatch.setattr("engines.streaming.snapshot._fill_exact", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        restore(room_for_one, snapshot)
    monkeypatch.undo()
    restored = restore(room_for_one, snapshot)
    with pytest.raises(PoolFull):
        restore(room_for_one, snapshot)
    assert restored.stream.blocks == 5


def test_a_stream_with_undecoded_blocks_cannot_be_taken(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    stream = generator.open(small)
    roll(generator, stream, 2, {0: prompts[0]})
    for take in (take_exact, take_light):
        with pytest.raises(StreamError, match="2 blocks are generated but 0 decoded"):
            take(generator, stream)


def test_noise_that_no_seed_made_cannot_be_taken(
    generator: Generator, small: StreamConfig, prompts: list[Prompt]
) -> None:
    class Zeros:
        def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(shape)

    stream = generator.open(small, Zeros())
    with pytest.raises(SnapshotError, match="noise is a Zeros"):
        take_light(generator, stream)


def test_a_light_snapshot_at_480x832_takes_ten_megabytes() -> None:
    sizes = TransformerConfig(dim=12, layers=1, heads=1, ffn_dim=8)
    transformer, codec = CausalTransformer(sizes).bfloat16(), WanVAE(VAEConfig(dim=2)).bfloat16()
    generator = denoiser_for(transformer, codec)
    stream = generator.open(StreamConfig(steps=(1000,)))
    switches = {block: Prompt(f"at {block}", torch.randn(100, 4096).bfloat16()) for block in (0, 10)}
    roll(generator, stream, 14, switches)
    stream.decoded_blocks = stream.blocks
    assert len(take_light(generator, stream)) == pytest.approx(10.0e6, rel=0.01)

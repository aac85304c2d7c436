from __future__ import annotations

import json

import pytest
import torch

from engines.config.presets import preset
from engines.device.host_copy import HostCopier
from engines.device.side_stream import record_event
from engines.errors import SnapshotError
from engines.loading.model import Model
from engines.streaming.generator import Generator
from engines.streaming.replica_log import StandbySnapshot
from engines.streaming.snapshot import restore, take_light
from engines.streaming.stream import Stream
from engines.text.prompt import Prompt
from engines.video.stream_engine import StreamEngine
from tests.support.fake_cuda import Stuck, install
from tests.support.generators import denoiser_for


@pytest.fixture
def generator() -> Generator:
    model = Model.random(preset("tiny-taehv"), seed=1)
    return denoiser_for(model.transformer, kept_frames=18, identity=model.identity)


def opened(generator: Generator) -> Stream:
    stream = generator.open(preset("tiny-taehv").stream)
    generator.set_prompt(stream, prompt("a red balloon", 1.0))
    return stream


def content(snapshot: bytes) -> dict[str, str]:
    """The facts, and the checksum over everything; the file's own order is left to chance."""
    length = int.from_bytes(snapshot[:8], "little")
    metadata: dict[str, str] = json.loads(snapshot[8 : 8 + length])["__metadata__"]
    return metadata


def prompt(text: str, fill: float) -> Prompt:
    return Prompt(text, torch.full((4, 32), fill))


def test_a_mirror_holds_the_light_snapshot_after_every_block(generator: Generator) -> None:
    stream, mirror = opened(generator), StandbySnapshot()
    source = StreamEngine(generator).replica_log(stream)
    for number in range(8):
        if number == 3:
            generator.set_prompt(stream, prompt("a blue balloon", 2.0))
        generator.generate([stream])
        mirror.apply(source.changes().update())
        assert content(mirror.snapshot()) == content(take_light(generator, stream))


def test_an_update_carries_one_block_of_latents(generator: Generator) -> None:
    stream = opened(generator)
    source = StreamEngine(generator).replica_log(stream)
    for _ in range(6):
        generator.generate([stream])
        source.changes().update()
    (block,) = generator.generate([stream])
    new = source.changes().update().new
    assert [plain.shape for plain in new.values()] == [tuple(block.latents.shape)]


def test_a_stream_goes_on_from_a_mirror(generator: Generator) -> None:
    stream, mirror = opened(generator), StandbySnapshot()
    source = StreamEngine(generator).replica_log(stream)
    for _ in range(6):
        generator.generate([stream])
        mirror.apply(source.changes().update())
    restored = restore(generator, mirror.snapshot()).stream
    assert restored.blocks == 6
    assert len(restored.recent) == 6
    generator.generate([restored])


def test_an_update_does_not_wait_for_the_next_block(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = opened(generator)
    cuda = install(monkeypatch)
    generator.copier = HostCopier(torch.device("cuda:0"))
    source = StreamEngine(generator).replica_log(stream)
    updates, works = [], []
    for _ in range(2):
        generator.generate([stream])
        works.append(cuda.main.launch())
        updates.append(source.changes(record_event(torch.device("cuda:0"))))
    with pytest.raises(Stuck):
        updates[0].update()
    works[0].finish()
    assert updates[0].update().new
    with pytest.raises(Stuck):
        updates[1].update()


def test_a_mirror_that_missed_an_update_says_so(generator: Generator) -> None:
    stream, mirror = opened(generator), StandbySnapshot()
    source = StreamEngine(generator).replica_log(stream)
    generator.generate([stream])
    source.changes().update()
    generator.generate([stream])
    with pytest.raises(SnapshotError, match="missed an update"):
        mirror.apply(source.changes().update())

"""What goes to stages in other processes, as far as the device is concerned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engines.device.host_copy import HostCopier
from engines.device.side_stream import record_event
from engines.streaming.state import Block
from engines.text.prompt import Prompt
from serving.deployments.replicas.remote_stages import Latents, RemoteDecoder, RemoteTextEncoder, SentPrompt
from serving.deployments.routing.replica_client import Placed
from serving.errors import FrameOutOfRange, ReplicaLost, SessionNotFound
from serving.media.chunk import Chunk
from serving.pipeline.video_decoder import DecoderStart
from tests.support.fake_cuda import install, on_device

CUDA = torch.device("cuda:0")


class NoReplicas:
    """Notes what would be sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def work(self, replica: str, method: str, *arguments: Any) -> Chunk:
        self.sent.append(arguments)
        return Chunk(0, 0, ())

    async def place(self, method: str, *arguments: Any, tried: Callable[[str], None], moves: bool) -> Placed:
        self.sent.append(arguments)
        tried("there")
        return Placed("there", None)


def test_latents_leave_for_a_decoder_before_the_next_block_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, fleet = install(monkeypatch), NoReplicas()
    monkeypatch.setattr("serving.deployments.replicas.remote_stages.ReplicaClient", lambda *_: fleet)
    pictures = RemoteDecoder(None, 1.0, HostCopier(CUDA))  # type: ignore[arg-type]
    made = cuda.main.launch()
    ready = record_event(CUDA)
    made.finish()
    cuda.main.launch()
    latents = on_device(torch.ones(2, 3))

    async def send() -> None:
        await pictures.open("one", DecoderStart(4, 33, [latents], ready))
        await pictures.decode("one", Block(4, latents, ready, lead_in=1))

    asyncio.run(send())
    (_, _, _, warm), (_, _, alone, _, lead_in) = fleet.sent
    assert lead_in == 1
    for sent in (alone, *warm):
        assert isinstance(sent, Latents)
        assert torch.equal(sent.tensor(), torch.ones(2, 3))


class TextEncoders:
    """Those that a prompt is sent to, one after the other; the last one encodes it."""

    def __init__(self, names: str) -> None:
        self._names = names

    async def place(self, method: str, text: str, *, tried: Callable[[str], None]) -> Placed:
        for name in self._names:
            tried(name)
        return Placed(name, SentPrompt.of(Prompt(text, torch.zeros(1, 2))))


@pytest.mark.parametrize(("asked", "changes"), [("a", 0), ("ab", 1)], ids=["there", "lost"])
def test_a_prompt_that_another_text_encoder_had_to_encode_is_counted(
    monkeypatch: pytest.MonkeyPatch, asked: str, changes: int
) -> None:
    monkeypatch.setattr("serving.deployments.replicas.remote_stages.ReplicaClient", lambda *_: TextEncoders(asked))
    counted = list[None]()
    encoder = RemoteTextEncoder(None, 1.0, lambda: counted.append(None))  # type: ignore[arg-type]
    assert asyncio.run(encoder.encode("a boat")).text == "a boat"
    assert len(counted) == changes


class Decoders:
    """Two decoders as Serve reaches them: a request that names one which is gone goes to any other."""

    def __init__(self) -> None:
        self.next_blocks: dict[str, dict[str, int]] = {"a": {}, "b": {}}
        self.silent: set[str] = set()
        self.leaving: set[str] = set()
        self.astray = 0
        self.waiting: list[tuple[str, str]] = []
        self.kept: list[tuple[str, ...]] = []

    async def is_leaving(self, replica: str) -> bool:
        return replica in self.leaving

    async def place(
        self, method: str, name: str, block: int, *_: Any, tried: Callable[[str], None], moves: bool
    ) -> Placed:
        for replica in sorted(self.next_blocks, key=lambda replica: replica in self.silent):
            if moves and replica in self.leaving:
                continue
            tried(replica)
            self.next_blocks[replica][name] = block
            if replica not in self.silent:
                return Placed(replica, None)
        raise ReplicaLost("nobody answers")

    async def call(self, replica: str, method: str, name: str, *arguments: Any, timeout_s: float) -> Chunk:
        return await self.work(replica, method, name, *arguments)

    async def work(self, replica: str, method: str, name: str, *arguments: Any) -> Chunk:
        if replica in self.silent:
            self.waiting.append((replica, name))
            raise ReplicaLost("it is silent")
        if method == "keep":
            self.kept.append((replica, *name))
            return Chunk(0, 0, ())
        if self.astray:
            self.astray -= 1
            raise SessionNotFound("it is not open here")
        there = self.next_blocks.get(replica) or next(iter(self.next_blocks.values()))
        if method == "close":
            there.pop(name, None)
        elif name not in there:
            raise SessionNotFound("it is not open here")
        elif there[name] != arguments[0]:
            raise FrameOutOfRange(f"block {arguments[0]} is not the next to decode; {there[name]} is")
        else:
            there[name] += 1
        return Chunk(0, 0, ())


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> Decoders:
    found = Decoders()
    monkeypatch.setattr("serving.deployments.replicas.remote_stages.ReplicaClient", lambda *_: found)
    return found


def remote() -> RemoteDecoder:
    return RemoteDecoder(None, 1.0, HostCopier(torch.device("cpu")))  # type: ignore[arg-type]


def block(number: int) -> Block:
    return Block(number, torch.zeros(1))


def start(number: int) -> DecoderStart:
    return DecoderStart(number, 0, [])


def test_a_decoder_that_was_left_is_not_taken_for_the_one_that_is_gone(decoders: Decoders) -> None:
    async def left_and_found() -> None:
        pictures = remote()
        await pictures.open("one", start(0))
        decoders.silent = {"a"}
        with pytest.raises(ReplicaLost):
            await pictures.decode("one", block(0))
        await pictures.open("one", start(0))
        await pictures.decode("one", block(0))
        decoders.silent = set()
        del decoders.next_blocks["b"]
        with pytest.raises(ReplicaLost, match="knows nothing"):
            await pictures.decode("one", block(1))

    asyncio.run(left_and_found())


def test_a_request_that_reached_another_decoder_is_made_again(decoders: Decoders) -> None:
    async def astray_once() -> None:
        pictures = remote()
        await pictures.open("one", start(0))
        decoders.astray = 1
        await pictures.decode("one", block(0))

    asyncio.run(astray_once())


def test_a_silent_decoder_is_told_to_let_go_of_what_it_was_asked_to_open(decoders: Decoders) -> None:
    async def opened_nowhere() -> None:
        decoders.silent = {"a", "b"}
        with pytest.raises(ReplicaLost):
            await remote().open("one", start(0))
        await asyncio.sleep(0)

    asyncio.run(opened_nowhere())
    assert {replica for replica, _ in decoders.waiting} == {"a", "b"}


def test_a_decoder_that_was_silent_when_a_session_ended_is_told_again(decoders: Decoders) -> None:
    async def ended() -> None:
        pictures = remote()
        await pictures.open("one", start(0))
        decoders.silent = {"a"}
        await pictures.close("one")
        decoders.silent = set()
        await asyncio.sleep(0)

    asyncio.run(ended())
    assert decoders.next_blocks == {"a": {}, "b": {}}


def test_a_session_whose_decoder_leaves_goes_to_one_that_stays(decoders: Decoders) -> None:
    async def leaves() -> None:
        pictures = remote()
        await pictures.open("one", start(0))
        assert not await pictures.is_leaving("one")
        decoders.leaving = {"a"}
        assert await pictures.is_leaving("one")
        await pictures.open("one", start(0), moves=True)
        assert not await pictures.is_leaving("one")
        await pictures.decode("one", block(0))
        await asyncio.sleep(0)
        assert decoders.next_blocks["a"] == {}

    asyncio.run(leaves())


def test_a_session_stays_with_a_decoder_that_leaves_while_there_is_no_other(decoders: Decoders) -> None:
    async def stays() -> None:
        pictures = remote()
        await pictures.open("one", start(0))
        decoders.leaving = {"a", "b"}
        with pytest.raises(ReplicaLost):
            await pictures.open("one", start(0), moves=True)
        await pictures.decode("one", block(0))

    asyncio.run(stays())


def test_a_decoder_hears_again_and_again_what_is_wanted_of_it(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.deployments.replicas.remote_stages.KEEP_EVERY_S", 0)

    async def wanted() -> None:
        pictures = remote()
        for key in ("one", "two"):
            await pictures.open(key, start(0))
        await asyncio.sleep(0.05)
        decoders.kept.clear()
        await pictures.close("one")
        await asyncio.sleep(0.05)

    asyncio.run(wanted())
    (two,) = decoders.next_blocks["a"]
    assert decoders.kept[-1] == ("a", two)

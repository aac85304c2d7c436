"""Sessions of a denoiser that fail: each ends alone, and is told why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import PlanError, StreamError
from engines.streaming.replica_log import PendingDelta
from serving.errors import (
    FilmError,
    InvalidRequest,
    LimitReached,
    MemoryFull,
    SessionFailed,
)
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.video_decoder import VideoDecoder
from serving.replication.register import Ended
from serving.session.cue_queue import MAX_PENDING
from serving.timeline.cue import Blend, Cue
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import (
    MANAGER,
    NIGHT,
    NOON,
    SNOW,
    SPOILT,
    Bench,
    at_work,
    chunks,
    run,
    settled,
    spec,
    started,
)

SOON = pb.WeightedPrompt(text=SNOW)


def test_a_block_that_cannot_be_made_ends_its_own_session_only(pocket: OpenedModel) -> None:
    async def spoil() -> None:
        async with at_work(pocket, slots=2, batch=2) as bench:
            good = await started(bench, spec(pocket, "good"), NOON, NIGHT)
            bad = await started(bench, spec(pocket, "bad", seed=8), NOON, SPOILT)
            with pytest.raises(InvalidRequest, match="does not fit"):
                await chunks(bench, bad, 1000)
            assert len(await chunks(bench, good, 105)) == 9
            assert bench.ids == ("good",)
            await settled(lambda: bench.open_runs() == 1)

    run(spoil())


@pytest.mark.parametrize("network", ["passes", "pictures", "text"])
def test_a_session_for_which_there_is_no_memory_ends_alone(
    pocket: OpenedModel, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_denoise = pocket.model.transformer.denoise
    whole_decode, whole_forward = pocket.model.vae.decode, pocket.model.text_encoder.forward
    small = (4, 6)

    def memory_for(shape: Sequence[int]) -> None:
        if tuple(shape) != small:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    def denoise(latents: Tensor, *args: Any) -> Tensor:
        memory_for(latents.shape[-2:])
        return whole_denoise(latents, *args)

    def decode(latents: Tensor, *args: Any) -> Any:
        memory_for(latents.shape[-2:])
        return whole_decode(latents, *args)

    def forward(ids: Tensor, *args: Any) -> Tensor:
        memory_for(small if ids.shape[1] < 60 else ids.shape)
        return whole_forward(ids, *args)

    patched = {
        "passes": (pocket.model.transformer, "denoise", denoise),
        "pictures": (pocket.model.vae, "decode", decode),
        "text": (pocket.model.text_encoder, "forward", forward),
    }[network]
    large = spec(pocket, "large", seed=8)
    large = replace(large, stream=replace(large.stream, height=64))

    async def fill() -> None:
        async with at_work(pocket, slots=2) as bench:
            good = await started(bench, spec(pocket, "good"), NOON)
            bad = await started(bench, large, SNOW * 30 if network == "text" else SNOW)
            with pytest.raises(MemoryFull, match="no memory left for"):
                await chunks(bench, bad, 1000)
            assert len(await chunks(bench, good, 57)) == 5
            assert bench.ids == ("good",)
            await settled(lambda: bench.open_runs() == 1)

    with monkeypatch.context() as patch:
        patch.setattr(*patched)
        run(fill())


def test_a_session_that_cannot_be_opened_leaves_nothing(pocket: OpenedModel) -> None:
    async def overfill() -> None:
        async with at_work(pocket) as bench:
            many = tuple(Cue(frame, Blend.of(NOON)) for frame in range(MAX_PENDING + 1))
            with pytest.raises(LimitReached):
                await bench.open(spec(pocket), many)
            assert (bench.denoiser.free, bench.open_runs(), bench.decoder.keys) == (2, 0, ())

    run(overfill())


@pytest.mark.parametrize("stage", ["decode", "update"])
def test_an_error_that_nobody_foresaw_ends_its_session_and_is_told(
    pocket: OpenedModel, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("not foreseen")

    async def fail() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            async with aclosing(bench.denoiser.feed(name, MANAGER)) as items:
                await anext(items)
                await chunks(bench, name, 33)
                monkeypatch.setattr(VideoDecoder if stage == "decode" else PendingDelta, stage, broken)
                with pytest.raises(SessionFailed, match=r"delivering block .*RuntimeError: not foreseen"):
                    await chunks(bench, name, 2000)
            await settled(lambda: (bench.open_runs(), bench.ids) == (0, ()))
            top = await bench.register.latest(name)
            assert top is not None
            assert isinstance(top.record, Ended)

    run(fail())


@pytest.mark.parametrize("method", ["generate", "write_context"])
def test_an_error_that_nobody_foresaw_in_a_pass_ends_one_session_and_no_other(
    pocket: OpenedModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with at_work(pocket, batch=2) as bench:
            for seed, name in enumerate(("one", "two")):
                await started(bench, spec(pocket, name, seed, fps=16))
            both = [asyncio.create_task(chunks(bench, name, 105)) for name in ("one", "two")]
            stream, whole = bench.session("one").stream, getattr(bench.generator, method)

            def broken(streams: Sequence[Any], *arguments: Any) -> Any:
                if any(found is stream for found in streams):
                    raise RuntimeError("no memory")
                return whole(streams, *arguments)

            await settled(lambda: bench.session("one").logic.delivered_frames > 9)
            monkeypatch.setattr(bench.generator, method, broken)
            with pytest.raises(SessionFailed, match="RuntimeError: no memory"):
                await both[0]
            assert [unit.frame for chunk in await both[1] for unit in chunk.units] == list(range(105))
            bench.denoiser.check()

    run(fail())


FAILURES: dict[str, tuple[Callable[[Bench], tuple[Any, str]], Exception]] = {
    "a plan of the decoder": (lambda bench: (bench.decoder._decoding, "decode"), PlanError("no graph is for it")),
    "a pass": (lambda bench: (bench.generator, "generate"), StreamError("no graph is for it")),
    "a plan of the text encoder": (
        lambda bench: (bench.denoiser._prompts._text._encoder, "encode"),  # type: ignore[attr-defined]
        PlanError("no graph is for it"),
    ),
    "a film": (lambda _: (ChunkEncoder, "encode"), FilmError("no graph is for it")),
}
"""What serving and the engine raise on purpose that no client can mend: where, and what."""


@pytest.mark.parametrize("what", FAILURES)
def test_what_no_client_can_mend_ends_its_session_at_once_and_is_logged_once(
    pocket: OpenedModel, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, error = FAILURES[what]
    raised = list[Exception]()

    def broken(*_: Any) -> Any:
        raised.append(error)
        raise error

    async def fail() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            monkeypatch.setattr(*place(bench), broken)
            if what == "a plan of the text encoder":
                await bench.denoiser.command(name, pb.Command(schedule_prompt=pb.Cue(prompts=[SOON])))
            with pytest.raises(SessionFailed, match="no graph is for it"):
                await chunks(bench, name, 2000)

    run(fail())
    assert raised == [error]
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(record.message, bool(record.exc_info)) for record in told] == [("a session failed", True)]


def test_a_denoiser_that_makes_no_blocks_any_more_is_not_well(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("not foreseen")

    async def fail() -> None:
        async with at_work(pocket) as bench:
            monkeypatch.setattr(bench.denoiser._loop._scheduler, "pick", broken)
            bench.denoiser._wake()
            await asyncio.sleep(0.1)
            with pytest.raises(RuntimeError, match=r"making blocks has ended: RuntimeError\('not foreseen'\)"):
                bench.denoiser.check()
            monkeypatch.setattr(bench.denoiser, "check", lambda: None)

    run(fail())

"""When a denoiser says that it is not well: work that does not come back, and a device that fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from threading import Event
from typing import Any

import pytest
import torch

from engines.streaming.replica_log import PendingDelta
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.work_watch import FIRST_S, SHORTEST_S, TIMES_USUAL, WorkWatch
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import MANAGER, SNOW, Bench, at_work, chunks, run, settled, spec, started
from tests.serving.worker.pictures.clips import png
from tests.serving.worker.video_bench import restyling


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("usual_s", "most_s"), [(0.01, SHORTEST_S), (2.0, 2.0 * TIMES_USUAL)])
def test_work_may_take_twenty_times_what_it_usually_does_and_always_ten_seconds(
    usual_s: float, most_s: float
) -> None:
    clock = Clock()
    watch = WorkWatch("decoding", clock)

    def take(seconds: float) -> None:
        clock.now += seconds
        watch.check()

    watch.run(lambda: take(FIRST_S))
    for _ in range(20):
        watch.run(lambda: take(usual_s))
    watch.run(lambda: take(most_s))
    for _ in range(20):
        watch.run(lambda: take(usual_s))
    with pytest.raises(RuntimeError, match="decoding has not come back for"):
        watch.run(lambda: take(most_s + 0.1))


class Hanging:
    """Holds up a call in its thread, while a clock stands still."""

    def __init__(self, watch: WorkWatch, owner: Any, method: str) -> None:
        self._whole = getattr(owner, method)
        self._begun, self.goes_on, self.clock = Event(), Event(), Clock()
        watch._clock = self.clock
        setattr(owner, method, self._call)

    def _call(self, *arguments: Any) -> Any:
        self._begun.set()
        self.goes_on.wait(30)
        return self._whole(*arguments)

    async def is_noticed(self, bench: Bench, stage: str) -> None:
        """Not before ten seconds; a busy machine may have taken so long for others that it is later."""
        await settled(self._begun.is_set)
        self.clock.now = SHORTEST_S
        bench.denoiser.check()
        self.clock.now = 1000.0
        with pytest.raises(RuntimeError, match=f"{stage} has not come back for 1000 s"):
            bench.denoiser.check()
        self.goes_on.set()


STAGES: dict[str, Callable[[Any, Bench], tuple[WorkWatch, Any, str]]] = {
    "a pass": lambda denoiser, bench: (denoiser._watch, bench.generator, "generate"),
    "decoding": lambda denoiser, bench: (denoiser._decoder._watch, bench.decoder, "decode"),
    "encoding a text": lambda denoiser, _: (denoiser._text._watch, denoiser._text._encoder, "encode"),
}
"""What watches a stage's thread, and what is called in it."""

NEXT = pb.Command(schedule_prompt=pb.Cue(prompts=[pb.WeightedPrompt(text=SNOW)]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_work_does_not_come_back_is_not_well(
    pocket: OpenedModel, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 33)
            hanging = Hanging(*STAGES[stage](bench.denoiser, bench))
            await bench.denoiser.command(name, NEXT)
            await hanging.is_noticed(bench, stage)
            await chunks(bench, name, 57)

    # The pocket model's text encoder belongs to all tests.
    monkeypatch.setattr(pocket.prompts, "encode", pocket.prompts.encode)
    run(hang())


def test_so_is_one_whose_pictures_are_not_encoded(pocket: OpenedModel) -> None:
    async def hang() -> None:
        async with restyling(pocket) as controller:
            await controller.push(range(5))
            stage = controller.bench.denoiser._pictures._stage
            assert stage is not None
            hanging = Hanging(stage._watch, stage.encoder, "encode")
            controller.send(*(png(number) for number in range(5, 9)))
            await hanging.is_noticed(controller.bench, "encoding pictures")
            await settled(lambda: controller.frames >= 9)

    run(hang())


def fault(*_: Any) -> Any:
    raise torch.AcceleratorError("a device-side assert")


LOST: dict[str, Callable[[Any, Bench], tuple[Any, str]]] = {
    stage: lambda denoiser, bench, of=of: of(denoiser, bench)[1:] for stage, of in STAGES.items()
} | {"what is new for the standby": lambda *_: (PendingDelta, "update")}


@pytest.mark.parametrize("work", LOST)
def test_a_device_that_fails_in_the_work_for_one_session_is_told_at_once_and_nothing_is_tried_again(
    pocket: OpenedModel, work: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = list[Any]()

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        return fault()

    async def fail() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            async with aclosing(bench.denoiser.feed(name, MANAGER)) as feed:
                await anext(feed)
                await chunks(bench, name, 33)
                monkeypatch.setattr(*LOST[work](bench.denoiser, bench), failing)
                await bench.denoiser.command(name, NEXT)
                await settled(lambda: bool(calls))
                await settled(bench.denoiser._background._vital[0].done)
                with pytest.raises(RuntimeError, match="a device-side assert"):
                    bench.denoiser.check()
            # Its sessions go on elsewhere: they do not end.
            assert not bench.session(name).ending
            monkeypatch.setattr(bench.denoiser, "check", lambda: None)

    run(fail())
    assert len(calls) == 1
    assert any(record.exc_info for record in caplog.records if record.levelname == "ERROR")


def test_a_device_that_fails_as_a_session_is_opened_is_told(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with at_work(pocket) as bench:
            monkeypatch.setattr(bench.denoiser._engine, "open", fault)
            with pytest.raises(torch.AcceleratorError):
                await bench.open(spec(pocket))
            with pytest.raises(RuntimeError, match="a device-side assert"):
                bench.denoiser.check()
            monkeypatch.setattr(bench.denoiser, "check", lambda: None)

    run(fail())

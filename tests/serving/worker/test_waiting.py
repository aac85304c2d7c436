"""What sessions of a denoiser wait for, and say so."""

from __future__ import annotations

import asyncio

import pytest

from engines.text.prompt import Prompt
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import Role
from serving.session.types import Waiting
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import (
    at_work,
    chunks,
    events,
    run,
    settled,
    spec,
    started,
)


def test_an_unpaced_session_without_reports_pauses_at_what_was_sent_and_says_what_it_waits_for(
    pocket: OpenedModel,
) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket))
            await chunks(bench, name, 200)
            paused = await bench.denoiser.command(name, pb.Command(pause=pb.Pause()))
            sent = bench.session(name).logic.delivered_frames
            assert sent - 24 <= paused.frame + 1 <= sent
            resumed = await bench.denoiser.command(name, pb.Command(resume=pb.Resume()))
            assert resumed.frame == paused.frame + 1
            told = await events(bench, name, lambda e: e.state.waiting == pb.WAIT_REASON_SHOWN)
            assert told[-1].state.state == pb.SESSION_STATE_RUNNING
            frame = bench.session(name).logic.delivered_frames - 1
            await bench.denoiser.command(name, pb.Command(shown=pb.Shown(frame=frame)))
            on = await events(bench, name, lambda e: e.HasField("state") and not e.state.waiting)
            assert on[-1].state.next_frame > frame + 1

    run(work())


def test_a_paced_session_that_nobody_watches_says_that_it_waits_for_a_viewer(pocket: OpenedModel) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket, fps=16))
            await settled(lambda: bench.session(name).waiting is Waiting.VIEWER)
            assert bench.denoiser.describe(name).waiting == pb.WAIT_REASON_VIEWER
            await chunks(bench, name, 45)
            assert bench.denoiser.describe(name).waiting == pb.WAIT_REASON_UNSPECIFIED

    run(work())


def test_a_session_whose_prompt_is_not_encoded_says_that_it_waits_for_that(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            may_go_on = asyncio.Event()
            encode = bench.denoiser._prompts._text.encode

            async def slow(text: str) -> Prompt:
                await may_go_on.wait()
                return await encode(text)

            monkeypatch.setattr(bench.denoiser._prompts._text, "encode", slow)
            name = await started(bench, spec(pocket))
            await settled(lambda: bench.session(name).waiting is Waiting.PROMPT)
            may_go_on.set()
            await chunks(bench, name, 21)
            await settled(lambda: bench.session(name).waiting is not Waiting.PROMPT)

    run(work())


def test_a_controller_that_will_report_no_more_leaves_the_pace_to_the_clock(pocket: OpenedModel) -> None:
    async def work() -> None:
        async with at_work(pocket) as bench:
            name = await started(bench, spec(pocket, fps=32))
            controller = bench.denoiser.subscribe(name, Role.CONTROLLER, 0, "steering", "ann")
            await anext(controller)
            await settled(lambda: bench.session(name).logic.delivered_frames > 9)
            await bench.denoiser.command(name, pb.Command(client_id="ann", shown=pb.Shown(frame=0)), steers=True)
            bench.denoiser.reports_ended(name, "somebody else")
            assert bench.session(name).logic._position.is_reported
            bench.denoiser.reports_ended(name, "ann")
            await settled(lambda: bench.session(name).logic.delivered_frames > 60)
            await controller.aclose()

    run(work())

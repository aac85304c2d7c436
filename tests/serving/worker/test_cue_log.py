"""The cues of a denoiser's sessions, those that have applied and those to come."""

from __future__ import annotations

import pytest

from serving.errors import (
    InvalidRequest,
    LimitReached,
    WrongState,
)
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.session.applied_log import AppliedLog
from serving.session.types import Applied
from serving.timeline.cue import Blend, Cue
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import (
    MAX_BYTES,
    NOON,
    at_work,
    chunks,
    cues,
    events,
    prompts_in_every_block,
    run,
    spec,
    start,
    started,
)


def test_the_cues_that_have_applied_are_paged_through_until_a_reset(pocket: OpenedModel) -> None:
    async def page_through() -> None:
        async with at_work(pocket) as bench:
            many = prompts_in_every_block(5)
            await bench.open(spec(pocket), many)
            await bench.denoiser.command("one", start())
            await chunks(bench, "one", 57)
            first = bench.denoiser.applied_cues("one", "", 3)
            second = bench.denoiser.applied_cues("one", first.next_page_token, 0)
            assert [entry.cue.frame for entry in (*first.applied, *second.applied)] == [cue.frame for cue in many]
            assert (second.next_page_token, bench.denoiser.describe("one").applied_count) == ("", 5)
            await bench.denoiser.command("one", pb.Command(reset=pb.Reset()))
            with pytest.raises(WrongState, match="has been reset"):
                bench.denoiser.applied_cues("one", first.next_page_token, 0)

    run(page_through())


def test_a_prompt_that_is_too_long_for_the_model_is_told_as_it_applies(pocket: OpenedModel) -> None:
    async def tell() -> None:
        async with at_work(pocket) as bench:
            long = f"{NOON} over the land{' and the sea' * 300}"
            name = await started(bench, spec(pocket), NOON, long)
            found = await events(bench, name, lambda event: event.applied.frame > 0)
            cut = {event.applied.frame: event.applied.cut_tokens for event in found if event.HasField("applied")}
            assert (cut[0], cut[33] > 100) == (0, True)

    run(tell())


def test_whatever_is_pending_a_state_fits_any_client_and_a_snapshot_has_it_all(pocket: OpenedModel) -> None:
    async def ask() -> None:
        async with at_work(pocket) as bench:
            opened = await bench.open(spec(pocket), [Cue(12 * n, Blend.of("x" * 9_800)) for n in range(450)])
            state = bench.denoiser.describe("one")
            kept = bench.session("one").audience.kept_events(None)
            assert max(opened.ByteSize(), state.ByteSize(), len(kept[0])) < 4 << 20
            assert (state.pending_count, 0 < len(state.pending) < 450) == (450, True)
            page = bench.denoiser.pending_cues("one", "", 1000)
            assert (page.pending[0].frame, page.ByteSize() < 4 << 20) == (0, True)
            assert len((await bench.denoiser.save("one", MAX_BYTES)).session.pending) == 450

    run(ask())


@pytest.mark.parametrize(("token", "size"), [("0.99", 0), ("x", 0), ("1", 0), ("", -1), ("", 1001)])
def test_a_page_that_cannot_be_is_refused(pocket: OpenedModel, token: str, size: int) -> None:
    async def ask() -> None:
        async with at_work(pocket) as bench:
            await bench.open(spec(pocket), cues(NOON))
            with pytest.raises(InvalidRequest):
                bench.denoiser.applied_cues("one", token, size)

    run(ask())


def test_a_session_whose_log_cannot_be_written_ends_and_the_others_go_on(
    pocket: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AppliedLog, entry: Applied) -> None:
        raise LimitReached("the log of applied cues cannot be written: No space left on device")

    async def fill() -> None:
        async with at_work(pocket) as bench:
            other = await started(bench, spec(pocket, "other"))
            await chunks(bench, other, 9)
            monkeypatch.setattr(AppliedLog, "append", full)
            name = await started(bench, spec(pocket))
            with pytest.raises(LimitReached, match="No space left"):
                await events(bench, name, lambda _: False)
            assert bench.ids == (other,)
            await chunks(bench, other, 69)

    run(fill())

"""The spans of a session's blocks, and of their stages below them."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from serving.errors import ServingError
from serving.tracing.opentelemetry_tracer import OpenTelemetryTracer
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import NIGHT, NOON, SPOILT, at_work, chunks, run, spec, started

END = 57


class Spans:
    """What a tracer was given."""

    def __init__(self) -> None:
        self._kept, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = OpenTelemetryTracer(provider)

    def blocks(self) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if span.name == "block"]

    def stages(self, block: ReadableSpan) -> dict[str, ReadableSpan]:
        assert block.context is not None
        at = block.context.span_id
        return {
            s.name: s for s in self._kept.get_finished_spans() if s.parent is not None and s.parent.span_id == at
        }


def watched(pocket: OpenedModel, *prompts: str) -> Spans:
    spans = Spans()

    async def watch() -> None:
        async with at_work(pocket, tracer=spans.tracer) as bench:
            await chunks(bench, await started(bench, spec(pocket), *prompts), END)

    run(watch())
    return spans


def told(block: ReadableSpan) -> dict[str, Any]:
    return dict(block.attributes or {})


def test_each_block_is_a_trace_that_says_what_it_is(pocket: OpenedModel) -> None:
    blocks = watched(pocket, NOON, NIGHT).blocks()
    first, second, *_ = map(told, blocks)
    assert all(block.parent is None for block in blocks)
    assert [first[f"longtake.{name}"] for name in ("replica", "block", "cue_frame")] == ["here", 0, 0]
    assert (first["session.id"], second["longtake.block"]) == ("one", 1)
    assert second["longtake.first_frame"] == first["longtake.frames"]
    assert second["longtake.waited_s"] >= 0
    assert "longtake.cue_frame" not in second


def test_the_stages_of_a_block_are_below_it_and_in_order(pocket: OpenedModel) -> None:
    spans = watched(pocket, NOON)
    stages = spans.stages(spans.blocks()[0])
    ended = [stages[name].end_time or 0 for name in ("denoise", "decode", "encode", "deliver")]
    assert ended == sorted(ended)
    began = [stages[name].start_time or 0 for name in ("denoise", "decode", "encode", "deliver")]
    assert began == sorted(began)
    assert all(0 < last - first < 60e9 for first, last in zip(began, ended, strict=True))


def test_a_prompt_is_encoded_for_the_block_that_it_comes_into_force_with(pocket: OpenedModel) -> None:
    spans = watched(pocket, NOON, NIGHT)
    encoded = [told(block)["longtake.block"] for block in spans.blocks() if "prompt" in spans.stages(block)]
    cued = [told(block)["longtake.block"] for block in spans.blocks() if "longtake.cue_frame" in told(block)]
    assert encoded == cued == [0, 3]


def test_a_block_that_cannot_be_made_says_why(pocket: OpenedModel) -> None:
    spans = Spans()

    async def fail() -> None:
        async with at_work(pocket, tracer=spans.tracer) as bench:
            with pytest.raises(ServingError):
                await chunks(bench, await started(bench, spec(pocket), SPOILT), END)

    run(fail())
    (block,) = spans.blocks()
    assert not block.status.is_ok
    assert block.status.description


def test_a_block_that_is_not_sampled_asks_nothing_of_its_stages() -> None:
    assert OpenTelemetryTracer(TracerProvider(sampler=ALWAYS_OFF)).block({}).traceparent is None
    assert OpenTelemetryTracer(TracerProvider()).block({}).traceparent is not None

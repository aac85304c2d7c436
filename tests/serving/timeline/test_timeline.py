from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths, pixel_frames
from serving.errors import TimelineError
from serving.timeline.cue import Blend, Cue, Transition
from serving.timeline.schedule import LONGLIVE_BLOCKS, Step, schedule
from serving.timeline.timeline import MAX_CUES, MAX_FRAMES, Settings, Timeline

NOON, DUSK, NIGHT = (Blend.of(f"a red balloon over the hills at {hour}") for hour in ("noon", "dusk", "night"))

blends = st.sampled_from([NOON, DUSK, NIGHT, Blend((("snow", 1.0), ("rain", 3.0)))])
transitions = st.none() | st.builds(Transition, st.integers(1, 6), st.sampled_from(["linear", "slerp"]))
later_cues = st.lists(
    st.builds(Cue, st.integers(1, 400), blends, transitions), max_size=12, unique_by=lambda cue: cue.frame
)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Timelines that can be played."""
    cues = sorted(draw(later_cues), key=lambda cue: cue.frame)
    return Timeline((Cue(0, draw(blends)), *cues), draw(st.none() | st.integers(1, 500)))


def applied(timeline: Timeline, blocks: BlockLengths = LONGLIVE_BLOCKS) -> list[tuple[int, int, float]]:
    return [(step.block, step.asked_frame, step.fraction) for step in schedule(timeline, blocks).steps]


@pytest.mark.parametrize(
    "blocks", [BlockLengths(1, 1), BlockLengths(3, 3), BlockLengths(3, 2), BlockLengths(2, 5)]
)
def test_a_cue_applies_at_the_first_block_that_begins_at_or_after_its_frame(blocks: BlockLengths) -> None:
    lengths = [blocks.frames_of(block) for block in range(60)]
    begins = [pixel_frames(sum(lengths[:block])) for block in range(60)]
    for frame in range(150):
        assert blocks.block_at(frame) == next(b for b, begin in enumerate(begins) if begin >= frame)


@settings(max_examples=300, deadline=None)
@given(timelines())
def test_steps_rise_by_block_and_come_less_than_a_block_after_they_are_asked_for(timeline: Timeline) -> None:
    steps = schedule(timeline).steps
    assert all(before.block < step.block for before, step in pairwise(steps))
    firsts = {step.asked_frame: step for step in reversed(steps)}
    assert all(asked <= step.frame < asked + 12 for asked, step in firsts.items())
    assert all(step.frame == pixel_frames(3 * step.block) for step in steps)


@settings(max_examples=300, deadline=None)
@given(timelines())
def test_every_cue_is_applied_or_named_in_a_warning(timeline: Timeline) -> None:
    planned = schedule(timeline)
    done = {step.asked_frame for step in planned.steps}
    for cue in timeline.cues:
        last = Step(0, 0, cue.frame, cue.blend)
        whole = any(
            replace(step, block=0, frame=0, source=None, method="linear") == last for step in planned.steps
        )
        assert (cue.frame in done and whole) or any(f" {cue.frame} " in warning for warning in planned.warnings)


@settings(max_examples=300, deadline=None)
@given(timelines())
def test_a_transition_starts_from_the_prompt_in_force_and_rises_block_by_block(timeline: Timeline) -> None:
    steps = schedule(timeline).steps
    for number, step in enumerate(steps):
        first = next(n for n, other in enumerate(steps) if other.asked_frame == step.asked_frame)
        assert step.source in (None, first - 1)
        assert (step.block - steps[first].block, step.asked_frame) == (number - first, steps[first].asked_frame)
        assert 0 < step.fraction <= 1


@settings(max_examples=200, deadline=None)
@given(timelines())
def test_a_clip_is_rounded_up_to_whole_blocks_and_nothing_applies_after_it(timeline: Timeline) -> None:
    planned = schedule(timeline)
    if timeline.frames is None or planned.blocks is None or planned.frames is None:
        assert (planned.blocks, planned.frames) == (None, None)
        return
    assert timeline.frames <= planned.frames < timeline.frames + 12
    assert planned.frames % 12 == 9
    assert all(step.block < planned.blocks for step in planned.steps)


def test_a_transition_becomes_one_step_a_block_and_ends_at_the_new_prompt() -> None:
    steps = schedule(Timeline((Cue(0, NOON), Cue(30, NIGHT, Transition(4, "slerp"))))).steps
    assert [(step.block, step.frame, step.fraction) for step in steps[1:]] == [
        (3, 33, 0.25), (4, 45, 0.5), (5, 57, 0.75), (6, 69, 1.0),
    ]  # fmt: skip
    assert {(step.source, step.target, step.method, step.asked_frame) for step in steps[1:]} == {
        (0, NIGHT, "slerp", 30)
    }


def test_a_transition_that_is_cut_short_is_where_the_next_one_starts() -> None:
    timeline = Timeline(
        (Cue(0, NOON), Cue(9, DUSK, Transition(4)), Cue(33, NIGHT, Transition(2))),
    )
    planned = schedule(timeline)
    assert applied(timeline) == [(0, 0, 1.0), (1, 9, 0.25), (2, 9, 0.5), (3, 33, 0.5), (4, 33, 1.0)]
    assert [step.source for step in planned.steps] == [None, 0, 0, 2, 2]
    assert planned.warnings == ("the transition of the cue at frame 9 ends after 2 of its 4 blocks",)


def test_the_end_of_the_clip_cuts_a_transition_short() -> None:
    planned = schedule(Timeline((Cue(0, NOON), Cue(9, DUSK, Transition(4))), frames=33))
    assert planned.blocks == 3
    assert planned.warnings == ("the transition of the cue at frame 9 ends after 2 of its 4 blocks",)


def test_of_two_cues_on_one_block_the_later_wins_and_a_warning_says_so() -> None:
    timeline = Timeline((Cue(0, NOON), Cue(10, DUSK), Cue(21, NIGHT)))
    assert applied(timeline) == [(0, 0, 1.0), (2, 21, 1.0)]
    assert schedule(timeline).warnings == (
        "the cues at frames 10 and 21 both fall on the block at frame 21; the later one wins",
    )


def test_cues_that_differ_for_large_blocks_do_not_for_small_ones() -> None:
    assert applied(Timeline((Cue(0, NOON), Cue(10, DUSK), Cue(21, NIGHT))), BlockLengths(1, 1)) == [
        (0, 0, 1.0), (4, 10, 1.0), (6, 21, 1.0),
    ]  # fmt: skip


def test_a_cue_after_the_end_is_named_in_a_warning() -> None:
    planned = schedule(Timeline((Cue(0, NOON), Cue(15, DUSK)), frames=20))
    assert (planned.frames, len(planned.steps)) == (21, 1)
    assert planned.warnings == ("the cue at frame 15 never applies, because the clip ends at frame 21",)


@pytest.mark.parametrize(
    ("timeline", "message"),
    [
        (Timeline(), "cues: no cue is at frame 0, where the stream begins; there are no cues"),
        (Timeline((Cue(5, NOON), Cue(9, DUSK))), "cues: no cue is at frame 0.*; cues are at 5, 9"),
    ],
)
def test_nothing_is_scheduled_without_a_cue_at_the_beginning(timeline: Timeline, message: str) -> None:
    with pytest.raises(TimelineError, match=message):
        schedule(timeline)


def test_a_cue_on_an_existing_frame_overwrites_it() -> None:
    timeline = Timeline((Cue(0, NOON), Cue(30, DUSK)))
    assert timeline.with_cue(Cue(30, NIGHT)).cues == (Cue(0, NOON), Cue(30, NIGHT))
    assert timeline.with_cue(Cue(20, NIGHT)).cues == (Cue(0, NOON), Cue(20, NIGHT), Cue(30, DUSK))


def test_a_cue_is_taken_away_and_the_others_stay() -> None:
    timeline = Timeline((Cue(0, NOON), Cue(30, DUSK), Cue(60, NIGHT)))
    assert timeline.without_cue(30).cues == (Cue(0, NOON), Cue(60, NIGHT))


def test_a_cue_is_moved_even_over_another_one() -> None:
    timeline = Timeline((Cue(0, NOON), Cue(30, DUSK), Cue(60, NIGHT)))
    assert timeline.with_cue_moved(30, 90).cues == (Cue(0, NOON), Cue(60, NIGHT), Cue(90, DUSK))
    assert timeline.with_cue_moved(30, 60).cues == (Cue(0, NOON), Cue(60, DUSK))
    assert timeline.with_cue_moved(30, 30) == timeline


@pytest.mark.parametrize("verb", [lambda t: t.without_cue(7), lambda t: t.with_cue_moved(7, 30)])
def test_a_cue_that_is_not_there_is_refused_with_those_that_are(verb: Callable[[Timeline], Timeline]) -> None:
    timeline = Timeline(tuple(Cue(frame, NOON) for frame in range(0, 200, 20)))
    expected = r"no cue is at frame 7; cues are at 0, 20, 40, 60, 80, 100, 120, 140 and 2 more frames"
    with pytest.raises(TimelineError, match=expected):
        verb(timeline)


@settings(max_examples=150, deadline=None)
@given(timelines(), st.builds(Cue, st.integers(1, 400), blends, transitions))
def test_adding_and_taking_away_a_cue_leaves_the_others(timeline: Timeline, cue: Cue) -> None:
    others = [other for other in timeline.cues if other.frame != cue.frame]
    added = timeline.with_cue(cue)
    assert added.cue_at(cue.frame) == cue
    assert list(added.without_cue(cue.frame).cues) == others


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Blend(()), "prompts: the list is empty"),
        (lambda: Blend((("a", 1.0),) * 17), "prompts: 17 prompts are blended; at most 16 can be"),
        (lambda: Blend((("a", 1.0), (" \n\t", 1.0))), r"prompts\[1\]\.text: the prompt is empty"),
        (lambda: Blend.of("\u200b"), r"prompts\[0\]\.text: the prompt is empty"),
        (lambda: Blend.of("a" * 10_001), r"the prompt has 10001 characters; at most 10000 are read"),
        (lambda: Blend.of("a\ud800"), r"the prompt contains '\\ud800', half a character"),
        (lambda: Blend((("a", -1.0),)), r"prompts\[0\]\.weight: -1 is outside 0\.\.1000000"),
        (lambda: Blend((("a", float("nan")),)), r"prompts\[0\]\.weight: nan is not a finite number"),
        (lambda: Blend((("a", float("inf")),)), r"prompts\[0\]\.weight: inf is not a finite number"),
        (lambda: Blend((("a", 0.0), ("b", 0.0))), "prompts: all weights are 0; one must be positive"),
        (lambda: Transition(0), r"transition\.blocks: 0 blocks are outside 1\.\.1000"),
        (lambda: Transition(1001), r"transition\.blocks: 1001 blocks"),
        (lambda: Cue(-1, NOON), "frame: frame -1 is before the beginning"),
        (lambda: Cue(0, NOON, Transition(2)), "transition: the cue at frame 0 has no prompt before it"),
        (lambda: Timeline((Cue(9, NOON), Cue(9, DUSK))), r"cues\[1\]: its frame 9 does not come after frame 9"),
        (
            lambda: Timeline((Cue(0, NOON), Cue(9, NOON), Cue(8, DUSK))),
            r"cues\[2\]: its frame 8 does not come after",
        ),
        (
            lambda: Timeline(tuple(Cue(n, NOON) for n in range(MAX_CUES + 1))),
            "cues: 345601 cues are more than 345600",
        ),
        (lambda: Timeline((), 0), r"frames: 0 is outside 1\.\.1382400"),
        (lambda: Timeline((), MAX_FRAMES + 1), "frames: 1382401 is outside"),
        (lambda: Settings(seed=-1), r"seed: -1 is outside 0\.\.2\^64-1"),
        (lambda: Settings(seed=1 << 64), "seed: 18446744073709551616 is outside"),
        (lambda: Settings(height=10**5000), "height: a number of more than 24 digits is no multiple of 16 in"),
        (lambda: Settings(width=8), r"width: 8 is no multiple of 16 in 16\.\.4096"),
        (lambda: Settings(width=4112), "width: 4112 is no multiple of 16 in"),
        (lambda: Settings(height=470), "height: 470 is no multiple of 16 in"),
        (lambda: Settings(model=" "), "model: the name of the model is empty"),
        (lambda: Settings(steps=()), "steps: the list is empty"),
        (lambda: Settings(steps=(1001, 5)), r"steps: step 1001 is outside 1\.\.1000"),
        (lambda: Settings(steps=(5, 0)), r"steps: step 0 is outside"),
        (lambda: Settings(steps=(500, 500)), "steps: step 500 follows 500; steps must descend"),
    ],
)
def test_what_no_timeline_can_hold_is_refused_with_place_and_rule(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(TimelineError, match=message):
        build()


def test_the_limits_themselves_are_allowed() -> None:
    Settings(seed=(1 << 64) - 1, height=16, width=4096, steps=(1000, 1))
    Timeline((Cue(0, Blend.of("a" * 10_000)),), MAX_FRAMES)
    Blend((("a", 0.0), ("b", 1_000_000.0)))


def test_a_blend_says_its_proportions() -> None:
    assert Blend((("snow", 1.0), ("rain", 2.0))).text == "snow (0.333) + rain (0.667)"
    assert NOON.text == "a red balloon over the hills at noon"


def test_an_error_survives_the_way_to_another_process() -> None:
    error = TimelineError("cues[2].at", "'1:99' is no timecode")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "cues[2].at: '1:99' is no timecode"

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.text.blending import interpolate
from engines.text.prompt import Prompt
from serving.errors import TimelineError
from serving.pipeline.prompts import PlannedPrompts, PromptTrack
from serving.timeline.cue import Blend, Cue, Transition
from serving.timeline.schedule import schedule
from serving.timeline.timeline import Timeline

TEXTS = ("noon", "night", "snow")
ENCODED = {text: Prompt(text, torch.full((3, 4), float(number))) for number, text in enumerate(TEXTS)}

transitions = st.none() | st.builds(Transition, st.integers(1, 5), st.sampled_from(["linear", "slerp"]))
later = st.lists(
    st.builds(Cue, st.integers(1, 200), st.sampled_from(TEXTS).map(Blend.of), transitions),
    max_size=6,
    unique_by=lambda cue: cue.frame,
)


def steps(*cues: Cue) -> tuple[PromptTrack, list[Prompt]]:
    """The track behind the steps of cues, and the prompt of each."""
    track = PromptTrack(ENCODED)
    return track, [track.take(step) for step in schedule(Timeline(cues)).steps]


def test_a_cue_that_comes_at_once_is_its_own_prompt() -> None:
    assert steps(Cue(0, Blend.of("noon")), Cue(9, Blend.of("night")))[1] == [ENCODED["noon"], ENCODED["night"]]


def test_a_transition_passes_from_the_prompt_in_force_to_the_new_one() -> None:
    prompts = steps(Cue(0, Blend.of("noon")), Cue(9, Blend.of("snow"), Transition(2)))[1]
    assert [float(prompt.rows.mean()) for prompt in prompts] == [0.0, 1.0, 2.0]


def test_a_transition_cut_short_is_what_the_next_one_starts_from() -> None:
    snow, night = Cue(9, Blend.of("snow"), Transition(4)), Cue(21, Blend.of("night"), Transition(2))
    prompts = steps(Cue(0, Blend.of("noon")), snow, night)[1]
    half = interpolate(prompts[1], ENCODED["night"], 0.5, "linear")
    torch.testing.assert_close(prompts[2].rows, half.rows)


@given(later)
def test_a_step_taken_again_gives_the_same_prompt(cues: list[Cue]) -> None:
    ordered = sorted(cues, key=lambda cue: cue.frame)
    track = PromptTrack(ENCODED)
    for step in schedule(Timeline((Cue(0, Blend.of("noon")), *ordered))).steps:
        assert torch.equal(track.take(step).rows, track.take(step).rows)


@given(later, st.integers(0, 20))
def test_a_copy_goes_on_by_itself(cues: list[Cue], at: int) -> None:
    ordered = sorted(cues, key=lambda cue: cue.frame)
    planned = schedule(Timeline((Cue(0, Blend.of("noon")), *ordered))).steps
    track = PromptTrack(ENCODED)
    for step in planned[:at]:
        track.take(step)
    copy = track.copy(ENCODED)
    rest = [[other.take(step).rows for step in planned[at:]] for other in (track, copy)]
    assert all(torch.equal(one, another) for one, another in zip(*rest, strict=True))


def test_a_plan_says_which_prompt_is_in_force_at_each_block() -> None:
    planned = schedule(Timeline((Cue(0, Blend.of("noon")), Cue(21, Blend.of("night"))))).steps
    prompts = PlannedPrompts(planned, ENCODED)
    assert [prompts.at(block).text for block in range(4)] == ["noon", "noon", "night", "night"]


def test_a_plan_without_a_beginning_is_refused() -> None:
    with pytest.raises(TimelineError, match="no cue is at frame 0"):
        PlannedPrompts([], ENCODED).at(0)

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.config.geometry import BlockLengths
from serving.session.applied_log import AppliedLog
from serving.session.transitions import applied_as, last_settled, step_at, steps_before, steps_of
from serving.timeline.cue import Blend, Cue, Transition
from serving.timeline.schedule import schedule
from serving.timeline.timeline import Timeline

BLOCKS = BlockLengths()


def log_of(*cues: tuple[int, int | None]) -> AppliedLog:
    """Cues by block, each with the blocks of its transition."""
    made = [
        Cue(
            BLOCKS.pixel_frames(block), Blend.of(f"prompt {block}"), None if length is None else Transition(length)
        )
        for block, length in cues
    ]
    return AppliedLog(applied_as(made, BLOCKS))


logs = st.dictionaries(st.integers(1, 60), st.none() | st.integers(1, 9), max_size=20).map(
    lambda cues: log_of((0, None), *sorted(cues.items()))
)


@given(logs, st.integers(61, 70))
def test_the_steps_of_a_log_are_those_of_its_timeline(log: AppliedLog, end: int) -> None:
    offline = schedule(Timeline(tuple(entry.cue for entry in log)), BLOCKS).steps
    wanted = [step for step in offline if step.block < end]
    assert [*steps_of(log, end, BLOCKS)] == wanted
    assert steps_before(log.last, end) == len(wanted)


@given(logs)
def test_a_step_follows_from_the_last_cue_alone(log: AppliedLog) -> None:
    steps = {step.block: step for step in steps_of(log, 70, BLOCKS)}
    for block in range(70):
        last = log.page(log.count_before(block + 1) - 1, 1)[0]
        assert step_at(last, block, BLOCKS.pixel_frames(block)) == steps.get(block)


def test_what_shows_goes_back_to_the_last_cue_that_came_in_whole() -> None:
    log = log_of((0, None), (5, None), (8, 4), (10, 3))
    assert last_settled(log, 12) == 1
    assert last_settled(log, 13) == 3


def test_transitions_that_were_all_cut_short_go_back_to_the_beginning_over_any_number_of_pages() -> None:
    log = log_of((0, None), *((block, 9) for block in range(1, 700)))
    assert last_settled(log, 700) == 0


def test_of_a_long_log_only_its_end_is_read_to_know_what_shows() -> None:
    log = log_of(*((block, None) for block in range(700)))
    log.close()
    assert last_settled(log, 700) == 699

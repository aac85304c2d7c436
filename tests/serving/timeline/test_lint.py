from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.cli.timeline import explain
from serving.timeline.cue import Blend, Cue
from serving.timeline.formats.reader import ReadTimeline, read_timeline
from serving.timeline.lint import advice
from serving.timeline.timeline import Timeline
from tests.serving.timeline.formats.test_reader import ASSETS, EXAMPLE
from tests.serving.timeline.test_timeline import timelines
from tests.support.prompts import is_prompt

BEAR = "A large brown bear walks slowly along a stony river bank in a deep green forest on a misty autumn morning"
BEAR_SITS = "A large brown bear sits down on a stony river bank in a deep green forest on a misty autumn morning"
TRAIN = "An old black steam train crosses a high iron bridge over some desert canyon while the hot red sun sets"
BEAR_CITY = (
    "A large brown bear rides an old yellow tram through crowded city streets under bright neon signs at midnight"
)


def remarks(*cues: tuple[int, str]) -> list[str]:
    return advice(Timeline(tuple(Cue(frame, Blend.of(text)) for frame, text in cues)))


@pytest.mark.parametrize("path", [EXAMPLE, *sorted(ASSETS.iterdir())], ids=lambda path: path.name)
def test_our_own_examples_follow_the_advice(path: Path) -> None:
    assert advice(read_timeline(path).timeline) == []


def test_a_scene_that_goes_on_gets_no_remark() -> None:
    assert remarks((0, BEAR), (80, BEAR_SITS)) == []


def test_a_short_prompt_is_told_to_be_longer() -> None:
    assert remarks((0, "A cartoon dog jumping and then running.")) == [
        "the cue at frame 0 has 7 words: the model follows long, detailed prompts better; describe the subject, "
        "what it does, the setting and the light"
    ]


def test_the_longest_prompt_of_a_blend_counts() -> None:
    assert advice(Timeline((Cue(0, Blend(((BEAR, 1.0), ("snow", 1.0)))),))) == []


def test_a_cue_soon_after_another_is_told_to_wait() -> None:
    (remark,) = remarks((0, BEAR), (79, BEAR_SITS))
    assert remark.startswith(
        "the cue at frame 79 comes 4.9 s after the one before: the model is made for long takes"
    )


def test_a_prompt_that_shares_nothing_is_told_to_say_subject_and_setting_again() -> None:
    (remark,) = remarks((0, BEAR), (200, TRAIN))
    assert remark.startswith("the cue at frame 200 shares no word with the prompt before: say the subject")


def test_a_prompt_that_changes_much_at_once_is_told_to_change_one_thing() -> None:
    (remark,) = remarks((0, BEAR), (200, BEAR_CITY))
    assert remark.startswith(
        "the cue at frame 200 shares 3 of its 14 words with the prompt before: change one thing"
    )


def test_common_words_and_cases_do_not_make_two_prompts_alike() -> None:
    assert len(remarks((0, BEAR), (200, TRAIN.replace("some", "a").replace("while", "with")))) == 1
    assert remarks((0, BEAR), (200, BEAR_SITS.upper())) == []


@pytest.mark.parametrize("text", ["一只大熊猫在森林里慢慢地走", "パンダが森をゆっくり歩く", "หมีแพนด้าเดินในป่า"])
def test_scripts_without_spaces_are_not_judged_by_their_words(text: str) -> None:
    assert remarks((0, text), (100, text[::-1])) == []


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_advice_never_fails_and_is_one_sentence_a_remark(one: str, other: str) -> None:
    texts = [text + "x" for text in (one, other) if is_prompt(text + "x")]
    for remark in remarks(*((200 * number, text) for number, text in enumerate(texts))):
        assert remark.startswith("the cue at frame ")
        assert remark.isprintable()


def test_the_report_says_when_cues_apply_and_what_was_ignored() -> None:
    report = explain(read_timeline(ASSETS / "lighthouse-scope-2.1.json"))
    assert "length    243 frames asked, 249 made: 21 blocks, 15.56 s" in report
    assert "frame 104 (00:06.500), applies at frame 105 (00:06.562)" in report
    assert "in 4 blocks, slerp: frames 105, 117, 129, 141" in report
    assert "kvCacheAttentionBias" in report.split("warnings")[1]


def test_the_report_holds_the_warnings_of_the_schedule_and_the_advice() -> None:
    cues = tuple(Cue(frame, Blend.of("noon")) for frame in (0, 10, 21))
    report = explain(ReadTimeline(Timeline(cues), "longtake"))
    assert "length    open" in report
    assert "frame 10 (00:00.625), never applies" in report
    assert "the cues at frames 10 and 21 both fall on the block at frame 21" in report.split("warnings")[1]
    assert "has one word:" in report.split("advice")[1]


@settings(max_examples=200, deadline=None)
@given(timelines())
def test_every_timeline_that_can_be_played_can_be_explained(timeline: Timeline) -> None:
    report = explain(ReadTimeline(timeline, "longtake"))
    assert all(f"frame {cue.frame} (" in report for cue in timeline.cues)

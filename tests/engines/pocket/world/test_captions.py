from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.pocket.world import phrases
from engines.pocket.world.captions import caption, change_caption, plain_caption
from engines.pocket.world.phrases import Phrases, Phrasings
from engines.pocket.world.scene import (
    ATTRIBUTES,
    Color,
    Facing,
    Light,
    Motion,
    Scene,
    Setting,
    Subject,
    Weather,
    combinations,
)

KINDS: tuple[Phrasings, ...] = ("training", "held_out")
OF: dict[str, tuple[Mapping[Any, Phrases], ...]] = {
    "subject": (phrases.NOUN,), "color": (phrases.COLOR,), "motion": (phrases.DOING,),
    "setting": (phrases.LAND,),
    "light": (phrases.WHEN, phrases.LIGHT_NAME, phrases.LIGHT_CLAUSE, phrases.LIGHT_CHANGE),
    "weather": (
        phrases.WEATHER, phrases.WEATHER_NAME, phrases.WEATHER_CLAUSE, phrases.WEATHER_CHANGE,
        phrases.WEATHER_ADJECTIVE,
    ),
}  # fmt: skip
"""The tables in which each attribute's phrases stand."""


def finite(phrase: str) -> str:
    return re.sub(r"\w+ing\b", lambda verb: phrases.THIRD_PERSON.get(verb[0], verb[0]), phrase)


def meanings() -> dict[str, set[tuple[str, str]]]:
    """Every phrase, and the attributes and values that it names."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for attribute, tables in OF.items():
        for table in tables:
            for value, words in table.items():
                for phrase in words.of("all"):
                    bare = re.sub(r"^(the|a|an) ", "", phrase) if attribute == "setting" else phrase
                    found[bare].add((attribute, value))
                    found[finite(bare)].add((attribute, value))
    for (light, weather), words in phrases.LIGHT_AND_WEATHER.items():
        for phrase in words.of("all"):
            found[phrase] |= {("light", light), ("weather", weather)}
    for light, part in phrases.PART_OF_DAY.items():
        found[part].add(("light", light))
    for words in phrases.ENDED.values():
        for phrase in words.of("all"):
            found[phrase] = set()
    return found


MEANINGS = meanings()
PATTERN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, MEANINGS), key=len, reverse=True)) + r")\b")


def read(text: str) -> dict[str, set[str]]:
    """What a reader who takes the longest phrases first understands: the values that `text` names."""
    values: dict[str, set[str]] = {attribute: set() for attribute in ATTRIBUTES}
    for phrase in PATTERN.findall(text.lower()):
        for attribute, value in MEANINGS[phrase]:
            values[attribute].add(value)
    return values


def named(scene: Scene) -> dict[str, set[str]]:
    return {attribute: {getattr(scene, attribute)} for attribute in ATTRIBUTES}


def ways(text: str) -> set[str]:
    return set(re.findall(r"\b(left|right)", text.lower()))


def with_changes(scene: Scene, count: int, generator: np.random.Generator) -> Scene:
    """`scene` with `count` other values."""
    other = Scene.random(generator)
    while len(scene.differing(other)) < count:
        other = Scene.random(generator)
    names = generator.permutation(scene.differing(other))[:count]
    return replace(scene, **{name: getattr(other, name) for name in names})


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_names_the_six_attributes_and_no_other_value(kind: Phrasings) -> None:
    generator = np.random.default_rng(1)
    for _ in range(2000):
        scene = Scene.random(generator)
        text = caption(scene, generator, kind)
        assert read(text) == named(scene), text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
def test_a_caption_of_a_change_names_the_new_scene_alone(kind: Phrasings, count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(500):
        before = Scene.random(generator)
        scene = with_changes(before, count, generator)
        text = change_caption(before, scene, generator, kind)
        assert read(text) == named(scene), text


def test_no_phrase_names_two_values_of_an_attribute() -> None:
    assert MEANINGS["flying in circles"] == {("motion", Motion.CIRCLE)}
    for phrase, meant in MEANINGS.items():
        assert len({attribute for attribute, _ in meant}) == len(meant), phrase


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_value_has_many_phrases_to_train_on(attribute: str) -> None:
    for value in ATTRIBUTES[attribute]:
        table = OF[attribute][0]
        assert len(set(table[value].of("training"))) >= 6


def tables() -> list[Phrases]:
    everything = [table for table in vars(phrases).values() if isinstance(table, dict)]
    entries = [entry for table in everything for entry in table.values()]
    return [words for words in (*entries, *vars(phrases).values()) if isinstance(words, Phrases)]


def test_held_out_phrases_are_not_trained_on() -> None:
    assert len(tables()) > 70
    for words in tables():
        assert words.of("held_out")
        assert not set(words.of("held_out")) & set(words.of("training"))
        assert set(words.of("all")) == {*words.of("training"), *words.of("held_out")}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_no_held_out_phrase_is_part_of_one_that_is_trained_on(attribute: str) -> None:
    entries = [entry for table in OF[attribute] for entry in table.values()]
    trained = " | ".join(phrase for entry in entries for phrase in entry.of("training"))
    held_out = [phrase for entry in entries for phrase in entry.of("held_out")]
    assert [phrase for phrase in held_out if re.search(rf"\b{phrase}\b", trained)] == []


def test_held_out_phrases_are_made_of_words_that_are_trained_on() -> None:
    def words(kind: Phrasings) -> set[str]:
        return set(re.findall(r"\w+", " ".join(phrase for table in tables() for phrase in table.of(kind))))

    assert "desert" in words("training")
    assert words("held_out") - words("training") == set()


def test_an_unknown_kind_of_phrasing_is_refused() -> None:
    with pytest.raises(ValueError, match="phrasings is 'unseen'; choose one of training"):
        caption(combinations()[0], np.random.default_rng(0), "unseen")  # type: ignore[arg-type]


def test_the_same_seed_words_a_scene_alike_and_another_differently() -> None:
    scene = combinations()[1234]
    first, again, other = (caption(scene, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_a_scene_is_hardly_ever_worded_twice_alike() -> None:
    generator = np.random.default_rng(5)
    scene = combinations()[77]
    told = [caption(scene, generator) for _ in range(500)]
    assert len(set(told)) > 490


def test_short_lists_and_long_sentences_are_both_written() -> None:
    generator = np.random.default_rng(6)
    lengths = [len(caption(Scene.random(generator), generator).split()) for _ in range(1000)]
    assert min(lengths) < 10
    assert max(lengths) > 30


def test_the_way_of_a_drift_is_mostly_told_and_never_wrongly() -> None:
    generator = np.random.default_rng(7)
    told = 0
    for _ in range(400):
        scene = replace(Scene.random(generator), motion=Motion.DRIFT)
        found = ways(caption(scene, generator))
        assert found <= {scene.facing}
        told += bool(found)
    assert 160 < told < 320


def test_a_subject_that_turns_round_is_told_to() -> None:
    generator = np.random.default_rng(8)
    for _ in range(300):
        before = Scene.random(generator)
        scene = replace(before, facing=Facing.LEFT if before.facing is Facing.RIGHT else Facing.RIGHT)
        assert ways(change_caption(before, scene, generator)) == {scene.facing}


def test_a_change_is_often_told_as_one() -> None:
    generator = np.random.default_rng(9)
    before = combinations()[0]
    scene = replace(before, weather=Weather.SNOW)
    told = [change_caption(before, scene, generator).lower() for _ in range(400)]
    news = [
        text for text in told if any(phrase in text for phrase in phrases.WEATHER_CHANGE[Weather.SNOW].of("all"))
    ]
    same = [text for text in told if re.search("same|still|this", text)]
    assert len(news) > 100
    assert len(same) > 100


def test_every_scene_has_its_own_plain_wording() -> None:
    told = {plain_caption(scene): scene for scene in combinations()}
    assert len(told) == len(combinations())
    for text, scene in told.items():
        assert read(text) == named(scene)


def test_a_plain_wording_reads_like_a_sentence() -> None:
    scene = Scene(Subject.LANTERN, Color.RED, Motion.DRIFT, Setting.HILLS, Light.DUSK, Weather.RAIN)
    assert (
        plain_caption(scene)
        == "a red lantern drifting steadily to the right over rolling hills at dusk in the rain"
    )

"""Prompts for scenes, in the many ways in which people word them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.pocket.world import phrases
from engines.pocket.world.phrases import Phrases, Phrasings
from engines.pocket.world.scene import Light, Motion, Scene, Setting, Weather

_PLANS = Phrases(
    "{a} {doing} {around}; {a} {does} {around}; {sky}, {a} {does} {place}; {sky}, {a} is {doing} {place}; "
    "{place}, {a} {does} {sky}; {a} {does} {place}. {light_clause} and {weather_clause}; "
    "{a} {doing} {place}, {light_clause}, {weather_clause}; "
    "{light_clause} and {weather_clause}. {a} {does} {place}; "
    "{weather_clause}, and {a} {does} {place} {when}; {when}, while {weather_clause}, {a} {does} {place}; "
    "{a}. it {does} {place}. {light_clause}. {weather_clause}; there is {a}, {doing} {around}; "
    "{a} {doing}, {place}, {sky}; {opened} {doing} {around}; {opened} {doing} {place}, {sky}; "
    "{a} {does} {weathered_place} {when}; {weathered_place}, {a} {does} {when}; "
    "{keywords}; {keywords}; {keywords}",
    "{weather_clause} {when}, and {a} {does} {place}; {place}, {a} is {doing} {sky}; "
    "{light_clause}. {weather}, {a} is {doing} {place}; "
    "{when}, {opened} {doing} {place}. {weather_clause}; {keywords}",
)
"""Every plan names the six attributes once."""

_SAME = Phrases("the same {}; the {}; this {}; still the {}", "still the same {}; still this {}")
_NEW_COLOR = Phrases(
    "the same {noun}, now {color},; the {noun}, which is now {color},; the {noun}, now in {color},; "
    "the {noun} has turned {color} and is",
    "this {noun}, which has turned {color},; the {noun} is now {color} and is",
)
_NEW_SUBJECT = Phrases("now {}; instead, {}; this time {}; then we see {}", "now we see {}; then, instead, {}")

_FEW = 3
"""With more changes than these, what stayed is not worth a word."""

_PLAIN_MOTION = {
    Motion.DRIFT: "drifting steadily to the {}", Motion.HOVER: "bobbing up and down on the spot",
    Motion.CIRCLE: "flying in circles", Motion.SWAY: "swaying from side to side",
}  # fmt: skip
_PLAIN_SETTING = {Setting.HILLS: "rolling hills"}
_PLAIN_LIGHT = {light: f"at {light}" for light in Light}
_PLAIN_WEATHER = {
    Weather.CLEAR: "under a clear sky", Weather.RAIN: "in the rain", Weather.SNOW: "in falling snow",
    Weather.FOG: "in thick fog",
}  # fmt: skip


def caption(scene: Scene, generator: np.random.Generator, phrasings: Phrasings = "training") -> str:
    """One of the many wordings of `scene`: all six attributes are named, the facing sometimes.

    With `phrasings` "held_out" every phrase and the sentence plan are ones that training never uses.
    """
    words = _Words(scene, generator, phrasings)
    return words.written(words.with_ending(words.told()))


def change_caption(
    before: Scene, scene: Scene, generator: np.random.Generator, phrasings: Phrasings = "training"
) -> str:
    """A prompt that turns `before` into `scene`: names all of `scene`, and often says what is new or the same."""
    changed = before.differing(scene)
    words = _Words(scene, generator, phrasings, tell_facing="facing" in changed)
    if 0 < len(changed) <= _FEW and words.chance(0.65):
        return words.written(words.with_ending(_told_as_change(before, changed, words)))
    told = words.told()
    if words.chance(0.6):
        told = f"{words.any(phrases.BEFORE_NEWS)}{words.one_of((' ', ', ', ': '))}{told}"
    return words.written(words.with_ending(told))


def plain_caption(scene: Scene) -> str:
    """The one fixed wording of `scene`, for sheets, benchmarks and examples; only a drift tells its direction."""
    subject = _with_article(f"{scene.color} {scene.subject}")
    motion = _PLAIN_MOTION[scene.motion].format(scene.facing)
    land = _PLAIN_SETTING.get(scene.setting, f"the {scene.setting}")
    return f"{subject} {motion} over {land} {_PLAIN_LIGHT[scene.light]} {_PLAIN_WEATHER[scene.weather]}"


def _told_as_change(before: Scene, changed: Sequence[str], words: _Words) -> str:
    """What stays in its usual words, what is new in words that say so."""
    circumstances = [words.place(), words.when(), words.weather()]
    news = []
    for index, attribute in enumerate(("setting", "light", "weather")):
        is_clause = attribute in changed and attribute != "setting" and words.chance(0.7)
        if is_clause:
            news.append(words.news(attribute, before))
            circumstances[index] = ""
        else:
            circumstances[index] = f"{words.marked(attribute in changed)} {circumstances[index]}"
    told = f"{_head(changed, words)} {_doing(changed, words)} {' '.join(circumstances)}"
    if not news:
        return told
    if words.chance(0.5):
        return f"{told}{words.one_of((', but ', ', ', '. '))}{' and '.join(news)}"
    return f"{' and '.join(news)}{words.one_of((', ', ': ', '. '))}{told}"


def _head(changed: Sequence[str], words: _Words) -> str:
    """The subject, and what is new about it."""
    if "subject" in changed:
        return words.any(_NEW_SUBJECT).format(words.a())
    if "color" in changed:
        return words.any(_NEW_COLOR).format(noun=words.noun(), color=words.color())
    return words.any(_SAME).format(words.colored())


def _doing(changed: Sequence[str], words: _Words) -> str:
    turned = words.one_of(("turned round and ", "")) if "facing" in changed else ""
    return f"{words.marked('motion' in changed or 'facing' in changed)} {turned}{words.doing()}"


@dataclass(frozen=True)
class _Words:
    """Draws the pieces of one caption."""

    scene: Scene
    generator: np.random.Generator
    phrasings: Phrasings
    tell_facing: bool = False
    """Whether the facing must be named; otherwise chance decides."""

    def chance(self, share: float) -> bool:
        return self.generator.random() < share

    def one_of(self, choices: Sequence[str]) -> str:
        return choices[int(self.generator.integers(len(choices)))]

    def any(self, choices: Phrases) -> str:
        return self.one_of(choices.of(self.phrasings))

    def told(self) -> str:
        """A sentence or two, or a list of keywords."""
        pieces = {
            "a": self.a, "opened": self.opened, "doing": self.doing, "does": self.does, "around": self.around,
            "place": self.place, "weathered_place": self.weathered_place, "when": self.when, "sky": self.sky,
            "weather": self.weather, "light_clause": self.light_clause, "weather_clause": self.weather_clause,
            "keywords": self.keywords,
        }  # fmt: skip
        return re.sub(r"{(\w+)}", lambda slot: pieces[slot[1]](), self.any(_PLANS))

    def noun(self) -> str:
        return self.any(phrases.NOUN[self.scene.subject])

    def color(self) -> str:
        return self.any(phrases.COLOR[self.scene.color])

    def colored(self) -> str:
        size = f"{self.any(phrases.SIZE)} " if self.chance(0.25) else ""
        return size + self.any(phrases.COLORED).format(color=self.color(), noun=self.noun())

    def a(self) -> str:
        return _with_article(self.colored())

    def opened(self) -> str:
        return self.any(phrases.OPENING).format(self.a())

    def doing(self) -> str:
        """The motion, with a participle; often with the way of a drift, sometimes with where others look."""
        doing = self.any(phrases.DOING[self.scene.motion])
        drifts = self.scene.motion is Motion.DRIFT
        if not (self.tell_facing or self.chance(0.6 if drifts else 0.2)):
            return doing
        if drifts:
            return f"{doing} {self.any(phrases.WAY[self.scene.facing])}"
        return f"{doing}, {self.any(phrases.LOOKING[self.scene.facing])},"

    def does(self) -> str:
        return re.sub(r"\w+ing\b", lambda verb: phrases.THIRD_PERSON.get(verb[0], verb[0]), self.doing())

    def land(self) -> str:
        return self.any(phrases.LAND[self.scene.setting])

    def place(self) -> str:
        return self.any(phrases.PLACE).format(self.land())

    def weathered_place(self) -> str:
        """The place and the weather: over the foggy hills. A clear sky is not said of the land."""
        if self.scene.weather is Weather.CLEAR:
            return f"{self.place()} {self.weather()}"
        article, bare = _split_article(self.land())
        article = "a" if article == "an" else article
        return self.any(phrases.PLACE).format(f"{article} {self._adjective()} {bare}".strip())

    def when(self) -> str:
        return self.any(phrases.WHEN[self.scene.light])

    def weather(self) -> str:
        return self.any(phrases.WEATHER[self.scene.weather])

    def light_clause(self) -> str:
        return self.any(phrases.LIGHT_CLAUSE[self.scene.light])

    def weather_clause(self) -> str:
        return self.any(phrases.WEATHER_CLAUSE[self.scene.weather])

    def sky(self) -> str:
        """Light and weather, one after the other or as one phrase."""
        both = phrases.LIGHT_AND_WEATHER.get((self.scene.light, self.scene.weather))
        if both and self.chance(0.25):
            return self.any(both)
        if self.chance(0.25):
            return self.any(phrases.ON_A).format(self._adjective(), phrases.PART_OF_DAY[self.scene.light])
        return self.one_of((" ", ", ", " and ")).join(self._shuffled([self.when(), self.weather()]))

    def around(self) -> str:
        """Place, light and weather."""
        return " ".join(self._shuffled([self.place(), self.sky()]))

    def keywords(self) -> str:
        """As many users write: phrases in any order, without sentences."""
        kept_together = self.chance(0.75)
        subject = [self.colored()] if kept_together else [self.noun(), self.color()]
        _, land = _split_article(self.land())
        light = self.any(phrases.LIGHT_NAME[self.scene.light])
        weather = self.any(phrases.WEATHER_NAME[self.scene.weather])
        items = self._shuffled([*subject, self.doing(), land, light, weather])
        return self.one_of((", ", ", ", " ", "; ", " / ")).join(items)

    def marked(self, is_new: bool) -> str:
        """A word that says whether what follows is new, or none."""
        return self.one_of(("now", "now", "") if is_new else ("", "", "", "still"))

    def news(self, attribute: str, before: Scene) -> str:
        """A clause that tells the new light or weather, and sometimes that the old one has ended."""
        if attribute == "light":
            change, old = phrases.LIGHT_CHANGE[self.scene.light], phrases.ENDED[before.light]
        else:
            change, old = phrases.WEATHER_CHANGE[self.scene.weather], phrases.ENDED[before.weather]
        ended = f"{self.any(old)} and " if self.chance(0.25) else ""
        return f"{ended}{self.any(phrases.BEFORE_NEWS)} {self.any(change)}"

    def with_ending(self, text: str) -> str:
        """Sometimes with words on style."""
        if not self.chance(0.25):
            return text
        return ", ".join([text, *(self.any(phrases.ENDING) for _ in range(1 + self.chance(0.3)))])

    def written(self, text: str) -> str:
        """With tidy commas, in one of the ways in which people use capitals and full stops."""
        text = re.sub(r"\s+", " ", text)
        text = re.sub(r"[ ,]*([,.;])", r"\1", text).strip(" ,")
        case = self.generator.random()
        if case < 0.3:
            return text
        if case < 0.35:
            return text.upper()
        text = re.sub(r"(^|\. )(\w)", lambda start: start[1] + start[2].upper(), text)
        return text + self.one_of((".", ".", ""))

    def _adjective(self) -> str:
        return self.any(phrases.WEATHER_ADJECTIVE[self.scene.weather])

    def _shuffled(self, pieces: list[str]) -> list[str]:
        return [pieces[i] for i in self.generator.permutation(len(pieces))]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _split_article(land: str) -> tuple[str, str]:
    """`land` in two: its article, which may be empty, and the rest."""
    first, _, rest = land.partition(" ")
    return (first, rest) if first in ("the", "a", "an") else ("", land)

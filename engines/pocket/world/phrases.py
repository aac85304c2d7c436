"""The words of captions: for every value of a scene's attributes the phrases that may name it.

A phrase names one value only. Held-out phrases are never trained on, but are made of words that are, so that a
judge can measure unseen wording; a model of this size cannot know a word that it never met.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, TypeAlias

from engines.pocket.world.scene import Color, Facing, Light, Motion, Setting, Subject, Weather

Phrasings: TypeAlias = Literal["training", "held_out", "all"]
"""Which phrases and sentence plans may be used."""


@dataclass(frozen=True)
class Phrases:
    """Phrases of one meaning, each list written as one text with `; ` between them."""

    training: str
    held_out: str

    def of(self, phrasings: Phrasings) -> tuple[str, ...]:
        """The phrases that may be used. Raises ValueError for an unknown kind."""
        return _chosen(self, phrasings)


@functools.cache
def _chosen(phrases: Phrases, phrasings: Phrasings) -> tuple[str, ...]:
    lists = {
        "training": (phrases.training,),
        "held_out": (phrases.held_out,),
        "all": (phrases.training, phrases.held_out),
    }
    if phrasings not in lists:
        raise ValueError(f"phrasings is {phrasings!r}; choose one of {', '.join(lists)}")
    return tuple("; ".join(lists[phrasings]).split("; "))


NOUN = {
    Subject.BALLOON: Phrases(
        "balloon; hot air balloon; hot-air balloon; air balloon; balloon with a basket; gas balloon; "
        "round balloon",
        "round hot air balloon; balloon with a round basket",
    ),
    Subject.SAILBOAT: Phrases(
        "sailboat; sailing boat; boat; boat with a sail; yacht; sailing ship; sailing yacht",
        "ship with a sail; boat with a tall sail",
    ),
    Subject.BIRD: Phrases(
        "bird; songbird; bird with wide wings; winged bird; feathered bird; bird with a beak; "
        "bird with long wings; parrot",
        "winged songbird; bird with feathered wings",
    ),
    Subject.TRAIN: Phrases(
        "train; steam train; locomotive; railway train; train with wagons; steam locomotive; "
        "passenger train; railway engine",
        "railway locomotive; train with passenger wagons",
    ),
    Subject.FISH: Phrases(
        "fish; fish with a long tail; finned fish; carp; trout; fish with wide fins; tropical fish",
        "tropical carp; fish with long fins",
    ),
    Subject.LANTERN: Phrases(
        "lantern; paper lantern; lamp; paper lamp; sky lantern; lantern with a candle; glowing lantern",
        "glowing paper lantern; lamp with a candle",
    ),
}

COLOR = {
    Color.RED: Phrases(
        "red; bright red; deep red; crimson; scarlet; ruby red; cherry red",
        "vivid red; bright scarlet; deep crimson",
    ),
    Color.YELLOW: Phrases(
        "yellow; bright yellow; vivid yellow; lemon yellow; golden yellow; canary yellow; golden",
        "deep yellow; bright golden; bright lemon yellow",
    ),
    Color.GREEN: Phrases(
        "green; bright green; emerald; emerald green; grass green; leaf green; jade green",
        "vivid green; bright emerald; deep green",
    ),
    Color.BLUE: Phrases(
        "blue; bright blue; vivid blue; azure; cobalt blue; royal blue; sapphire blue",
        "deep blue; bright azure; vivid azure",
    ),
    Color.PURPLE: Phrases(
        "purple; bright purple; deep purple; violet; plum purple; amethyst; grape purple",
        "vivid purple; deep violet; bright violet",
    ),
    Color.WHITE: Phrases(
        "white; bright white; pure white; pearl white; ivory; chalk white; plain white",
        "vivid white; ivory white; pure ivory",
    ),
}

COLORED = Phrases(
    "{color} {noun}; {color} {noun}; {color} {noun}; {color} {noun}; {color}-coloured {noun}; "
    "{color}-colored {noun}; {noun} in {color}",
    "{noun} coloured {color}; {noun} in {color} colours",
)

SIZE = Phrases("small; little; big; large; lone; single; shiny; pretty; lovely", "big shiny; lovely little")
"""Adjectives that tell nothing a scene knows."""

DOING = {
    Motion.DRIFT: Phrases(
        "drifting; drifting along; drifting slowly; gliding; gliding steadily; gliding along; floating; "
        "floating along; flying; flying along; moving along; moving straight ahead; travelling; traveling onward; "
        "cruising; heading onward; passing by; making its way; sailing; sailing along; going straight ahead",
        "travelling steadily; drifting onward; gliding slowly ahead",
    ),
    Motion.HOVER: Phrases(
        "hovering; hovering in place; hovering on the spot; bobbing; bobbing gently on the spot; "
        "bobbing up and down; rising and sinking in place; moving up and down; floating up and down; "
        "going gently up and down; staying in place and bobbing; dipping and rising",
        "bobbing in place; hovering up and down; rising and sinking on the spot",
    ),
    Motion.CIRCLE: Phrases(
        "circling; circling round and round; flying in circles; going in circles; moving in a circle; "
        "going round and round; looping; looping in circles; turning in wide circles; tracing a circle; "
        "wheeling round; making circles",
        "looping round and round; flying in a circle; tracing wide circles",
    ),
    Motion.SWAY: Phrases(
        "swaying; swaying gently; swaying from side to side; swinging; swinging from side to side; rocking; "
        "rocking to and fro; tilting from side to side; tilting back and forth; swinging like a pendulum; "
        "swaying like a pendulum; leaning to one side and the other",
        "rocking from side to side; swinging to and fro; swaying back and forth",
    ),
}

THIRD_PERSON = {
    "bobbing": "bobs", "circling": "circles", "cruising": "cruises", "dipping": "dips", "drifting": "drifts",
    "floating": "floats", "flying": "flies", "gliding": "glides", "going": "goes", "heading": "heads",
    "hovering": "hovers", "leaning": "leans", "looping": "loops", "making": "makes", "moving": "moves",
    "passing": "passes", "rising": "rises", "rocking": "rocks", "sailing": "sails", "sinking": "sinks",
    "staying": "stays", "swaying": "sways", "swinging": "swings", "tilting": "tilts", "tracing": "traces",
    "traveling": "travels", "travelling": "travels", "turning": "turns", "wheeling": "wheels",
}  # fmt: skip
"""From the participles of `DOING` to their finite forms."""

WAY = {
    Facing.LEFT: Phrases(
        "to the left; left; leftwards; leftward; towards the left; toward the left",
        "over to the left; to the left side",
    ),
    Facing.RIGHT: Phrases(
        "to the right; right; rightwards; rightward; towards the right; toward the right",
        "over to the right; to the right side",
    ),
}
"""Where a drifting subject goes."""

LOOKING = {
    Facing.LEFT: Phrases(
        "facing left; facing to the left; looking left; looking to the left; turned to the left; pointing left",
        "facing leftwards; turned left",
    ),
    Facing.RIGHT: Phrases(
        "facing right; facing to the right; looking right; looking to the right; turned to the right; "
        "pointing right",
        "facing rightwards; turned right",
    ),
}

LAND = {
    Setting.SEA: Phrases(
        "the sea; the ocean; the open sea; the waves; calm water; open water; the wide ocean; the sea waves; "
        "the water",
        "the calm ocean; the wide sea",
    ),
    Setting.HILLS: Phrases(
        "the hills; rolling hills; gentle hills; grassy hills; a hilly landscape; hilly country; the hillsides; "
        "hills and meadows; the mountains; low mountains",
        "a landscape of hills; gentle grassy hills",
    ),
    Setting.DESERT: Phrases(
        "the desert; sand dunes; a sandy desert; the dunes; desert sand; a dry desert; desert dunes; endless sand",
        "the endless desert; sandy dunes",
    ),
    Setting.CITY: Phrases(
        "the city; a city skyline; the rooftops of a city; tall buildings; the town; skyscrapers; a big city; "
        "the skyline; city towers; houses and towers",
        "the towers of a city; a tall skyline",
    ),
    Setting.FOREST: Phrases(
        "the forest; the woods; the treetops; tall trees; a pine forest; a dense forest; woodland; fir trees; "
        "the trees of a forest; the trees",
        "dense woods; tall pine trees",
    ),
}

PLACE = Phrases(
    "over {}; above {}; high above {}; high over {}; far above {}; in front of {}; with {} below; "
    "with {} in the background",
    "far over {}; with {} far below",
)
"""How the land is made part of a sentence."""

WHEN = {
    Light.DAWN: Phrases(
        "at dawn; at sunrise; at daybreak; in the early morning; early in the morning; as the sun rises; "
        "in the first light of the day; in the morning; in the morning light; at the break of day",
        "in the light of dawn; as the morning sun rises; in the light of the sunrise",
    ),
    Light.NOON: Phrases(
        "at noon; at midday; in broad daylight; in the middle of the day; under the midday sun; at high noon; "
        "during the day; in the daytime; by day; in full daylight; around noon",
        "in the light of noon; under the noon sun; around midday",
    ),
    Light.DUSK: Phrases(
        "at dusk; at sunset; at sundown; in the evening; as the sun sets; in the evening light; "
        "in the last light of the day; early in the evening; as evening falls; at the end of the day; "
        "in the glow of the sunset; at twilight",
        "in the light of dusk; as the evening sun sets; in the early evening",
    ),
    Light.NIGHT: Phrases(
        "at night; by night; at midnight; in the dark; after dark; under the stars; in the moonlight; "
        "by moonlight; in the dark of night; in the middle of the night; under the moon",
        "in the dark night; by the light of the moon; around midnight",
    ),
}

LIGHT_NAME = {
    Light.DAWN: Phrases(
        "dawn; sunrise; early morning; daybreak; morning; morning light", "light of dawn; morning sun"
    ),
    Light.NOON: Phrases("noon; midday; daytime; broad daylight; daylight; midday sun", "noon light; bright noon"),
    Light.DUSK: Phrases("dusk; sunset; evening; sundown; evening light; twilight", "evening sun; sunset glow"),
    Light.NIGHT: Phrases(
        "night; nighttime; midnight; dark night; moonlight; night sky", "dark midnight; dark nighttime"
    ),
}
"""For lists of keywords."""

LIGHT_CLAUSE = {
    Light.DAWN: Phrases(
        "it is dawn; it is early morning; the sun is rising; the sun has just come up; day is breaking; "
        "it is sunrise",
        "the morning sun is rising; it is daybreak",
    ),
    Light.NOON: Phrases(
        "it is noon; it is midday; it is broad daylight; the sun stands high; it is the middle of the day; "
        "it is daytime",
        "the midday sun stands high; it is full daylight",
    ),
    Light.DUSK: Phrases(
        "it is dusk; it is evening; the sun is setting; the sun is going down; evening is falling; it is sunset",
        "the evening sun is setting; it is early evening",
    ),
    Light.NIGHT: Phrases(
        "it is night; it is dark; the moon is out; the stars are out; it is midnight; it is after dark",
        "the moon and the stars are out; it is a dark night",
    ),
}

LIGHT_CHANGE = {
    Light.DAWN: Phrases(
        "dawn has broken; the sun begins to rise; morning has come; day breaks; the sun comes up; dawn breaks",
        "dawn has come; morning breaks",
    ),
    Light.NOON: Phrases(
        "it has become midday; the sun has climbed high; noon has come; it turns to noon; "
        "the sun climbs high; daylight has come",
        "full daylight has come; it has become noon",
    ),
    Light.DUSK: Phrases(
        "dusk has come; the sun begins to set; evening has come; the sun goes down; evening falls; dusk falls",
        "it turns to evening; the evening has come",
    ),
    Light.NIGHT: Phrases(
        "night has fallen; night falls; it grows dark; darkness has come; the stars come out; it turns to night",
        "darkness has fallen; the moon comes out",
    ),
}
"""The light has just become this."""

WEATHER = {
    Weather.CLEAR: Phrases(
        "under a clear sky; in clear weather; in fine weather; beneath a cloudless sky; in clear air; "
        "without a cloud in the sky; in dry weather; in fair weather; under clear skies; in good weather",
        "in cloudless weather; beneath a clear sky; in dry clear air",
    ),
    Weather.RAIN: Phrases(
        "in the rain; in heavy rain; in pouring rain; while it rains; with rain falling; in rainy weather; "
        "in a downpour; in a drizzle; during a rain shower; under rain clouds; in a steady rain",
        "in a heavy downpour; with rain pouring down; during heavy rain",
    ),
    Weather.SNOW: Phrases(
        "in the snow; in falling snow; while it snows; with snow falling; amid snowflakes; in a snowfall; "
        "in snowy weather; in heavy snow; in a snowstorm; in a flurry of snow; during a snow shower",
        "amid falling snowflakes; in a heavy snowfall; during a snowstorm",
    ),
    Weather.FOG: Phrases(
        "in fog; in the fog; in thick fog; in the mist; through the mist; wrapped in fog; in foggy weather; "
        "in hazy air; veiled in mist; in a soft mist; with fog all around; in the haze",
        "wrapped in mist; in soft haze; through thick fog",
    ),
}

WEATHER_NAME = {
    Weather.CLEAR: Phrases(
        "clear sky; fine weather; clear weather; cloudless sky; clear skies; fair weather",
        "cloudless weather; cloudless air",
    ),
    Weather.RAIN: Phrases(
        "rain; heavy rain; rainy weather; pouring rain; drizzle; rainy", "heavy drizzle; rainy sky"
    ),
    Weather.SNOW: Phrases(
        "snow; snowfall; falling snow; snowy weather; snowy; snowflakes", "soft snowfall; snowy sky"
    ),
    Weather.FOG: Phrases("fog; mist; thick fog; foggy; misty; haze", "dense mist; misty weather"),
}
"""For lists of keywords."""

WEATHER_CLAUSE = {
    Weather.CLEAR: Phrases(
        "the sky is clear; there is not a cloud in the sky; the air is clear; the weather is fine; "
        "it is dry and clear; the sky is cloudless",
        "the weather is clear; there is a cloudless sky",
    ),
    Weather.RAIN: Phrases(
        "it is raining; rain is falling; rain pours down; it rains; a drizzle comes down; it is raining hard",
        "rain comes down; rain is pouring down",
    ),
    Weather.SNOW: Phrases(
        "it is snowing; snow is falling; snowflakes fall; it snows; snow comes down; it is snowing hard",
        "heavy snow is falling; snowflakes are falling",
    ),
    Weather.FOG: Phrases(
        "it is foggy; fog hangs in the air; mist lies all around; everything is veiled in mist; it is misty; "
        "thick fog hangs all around",
        "mist hangs in the air; everything is wrapped in fog",
    ),
}

WEATHER_CHANGE = {
    Weather.CLEAR: Phrases(
        "the sky clears; the sky has cleared; the weather turns fine; the clouds have gone; the air clears up; "
        "the sky turns clear",
        "the sky has turned clear; the weather clears up",
    ),
    Weather.RAIN: Phrases(
        "rain begins to fall; it starts to rain; a rain shower begins; rain sets in; it begins to rain; "
        "rain comes pouring down",
        "rain starts to fall; heavy rain sets in",
    ),
    Weather.SNOW: Phrases(
        "snow begins to fall; it starts to snow; it begins to snow; snow sets in; snowflakes begin to fall; "
        "a snowfall begins",
        "snow starts to fall; heavy snow sets in",
    ),
    Weather.FOG: Phrases(
        "fog rolls in; mist has come up; fog settles over everything; it turns foggy; mist closes in; fog gathers",
        "mist rolls in; fog has come up",
    ),
}
"""The weather has just become this."""

WEATHER_ADJECTIVE = {
    Weather.CLEAR: Phrases("clear; cloudless; fine", "calm clear"),
    Weather.RAIN: Phrases("rainy; wet", "calm rainy"),
    Weather.SNOW: Phrases("snowy", "calm snowy"),
    Weather.FOG: Phrases("foggy; misty; hazy", "calm foggy"),
}

PART_OF_DAY = {Light.DAWN: "morning", Light.NOON: "day", Light.DUSK: "evening", Light.NIGHT: "night"}
"""After an adjective of the weather: a foggy morning."""

ON_A = Phrases("on a {} {}; on one {} {}", "during a {} {}")

LIGHT_AND_WEATHER = {
    (Light.NOON, Weather.CLEAR): Phrases("on a sunny day; in bright sunshine", "in the sunshine"),
    (Light.NIGHT, Weather.CLEAR): Phrases("on a starry night; under a starry sky", "beneath a starry sky"),
}
"""Phrases that name two attributes at once."""

ENDED = {
    Light.DAWN: Phrases("the morning has passed; the early hours have passed", "the morning is over"),
    Light.NOON: Phrases("the day is over; the bright hours have passed", "the day has passed"),
    Light.DUSK: Phrases("the evening is over; the sunset has passed", "the evening has passed"),
    Light.NIGHT: Phrases("the night is over; the dark hours have passed", "the night has passed"),
    Weather.CLEAR: Phrases("the clear sky is gone; the fine weather is over", "the clear weather is over"),
    Weather.RAIN: Phrases("the rain has stopped; it no longer rains; the rain is over", "the rain has passed"),
    Weather.SNOW: Phrases("the snow has stopped; it no longer snows; the snow is over", "the snow has passed"),
    Weather.FOG: Phrases("the fog has lifted; the mist is gone; the fog is over", "the mist has lifted"),
}
"""What was before is no more: only said beside what is now."""

OPENING = Phrases(
    "a cinematic shot of {}; a long take of {}; a video of {}; footage of {}; a calm scene with {}; we see {}; "
    "a beautiful view of {}; an animation of {}; a picture of {}; a wide shot of {}",
    "a cinematic view of {}; a long shot of {}",
)

ENDING = Phrases(
    "cinematic; highly detailed; calm and peaceful; beautiful; dreamy mood; slow and quiet; in 4k; wide shot; "
    "cinematic lighting; best quality; soft colours; a long take; realistic; cartoon style; stylised",
    "peaceful and beautiful; cinematic style; quiet mood",
)

BEFORE_NEWS = Phrases("now; then; slowly; after a while; soon; this time; next", "now slowly; then after a while")
"""What a sentence that tells a change begins with."""

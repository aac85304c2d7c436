"""What LongLive's authors advise about prompts, as far as it can be told from the words of a timeline.

Their advice: say the subject and the setting in every prompt, change one thing at a time, prefer long takes to
quick cuts, and write in detail. Words are compared as they are spelt: synonyms count as new words, which is why
these are remarks and not warnings. Prompts in scripts that do not put spaces between words are only checked for
their times.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from engines.config.geometry import FRAMES_PER_SECOND
from serving.timeline.cue import Blend, Cue
from serving.timeline.timeline import Timeline

FEW_WORDS = 15
SHORT_TAKE_S = 5.0
MANY_NEW_WORDS = 0.6
"""The share of a prompt's words that are not in the one before, from which on more than one thing has changed."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")

_COMMON_WORDS = """
    a about above across after again against all along also an and another any are around as at away be been before
    begins behind being below beneath beside between both but by down during each every for from has have having he
    her hers him his how in into is it its itself just like more most moves near no not now of off on once one only
    onto or other our out over own seen she shot so some such than that the their them then there these they this
    those through to toward towards under until up upon very video view was were what when where which while who
    whose with within without you your camera scene
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def advice(timeline: Timeline) -> list[str]:
    """One sentence for each cue and each piece of advice that it does not follow."""
    remarks = [remark for cue in timeline.cues for remark in (*_on_length(cue), *_on_characters(cue))]
    for before, cue in pairwise(timeline.cues):
        remarks += _on_pace(before, cue) + _on_change(before, cue)
    return remarks


def _on_length(cue: Cue) -> list[str]:
    counts = [len(_words(text)) for text, _ in cue.blend.parts if _spaced(text)]
    if not counts or max(counts) >= FEW_WORDS:
        return []
    words = f"{max(counts)} words" if max(counts) != 1 else "one word"
    return [
        f"{_name(cue)} has {words}: the model follows long, detailed prompts better; "
        "describe the subject, what it does, the setting and the light"
    ]


def _on_characters(cue: Cue) -> list[str]:
    """Those of ASCII are taken away; those of Latin-1 are read as the quotes and dashes that they mean."""
    texts = "".join(text for text, _ in cue.blend.parts)
    controls = sorted({c for c in texts if c.isascii() and not c.isprintable() and not c.isspace()})
    if not controls:
        return []
    named = ", ".join(map(repr, controls))
    return [f"{_name(cue)} has control characters, which are taken away before the model reads it: {named}"]


def _on_pace(before: Cue, cue: Cue) -> list[str]:
    seconds = (cue.frame - before.frame) / FRAMES_PER_SECOND
    if seconds >= SHORT_TAKE_S:
        return []
    return [
        f"{_name(cue)} comes {seconds:.1f} s after the one before: the model is made for long takes and weak "
        f"at quick cuts; leave about {SHORT_TAKE_S:.0f} s between cues"
    ]


def _on_change(before: Cue, cue: Cue) -> list[str]:
    old, new = _content(before.blend), _content(cue.blend)
    if not old or not new:
        return []
    kept = len(new & old)
    if kept == 0:
        return [
            f"{_name(cue)} shares no word with the prompt before: say the subject and the setting again, "
            "in the same words, if the scene is to go on"
        ]
    if 1 - kept / len(new) > MANY_NEW_WORDS:
        return [
            f"{_name(cue)} shares {kept} of its {len(new)} words with the prompt before: change one thing "
            "at a time, and keep the words for the rest"
        ]
    return []


def _content(blend: Blend) -> frozenset[str]:
    """The words that say something; none if a prompt's script does not separate its words."""
    texts = [text for text, weight in blend.parts if weight > 0]
    if not all(_spaced(text) for text in texts):
        return frozenset()
    words = (word.casefold().removesuffix("'s").removesuffix("\u2019s") for text in texts for word in _words(text))
    return frozenset(word for word in words if len(word) > 2 and word not in _COMMON)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _spaced(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return len(letters) > 0 and not any(unicodedata.name(c, "").startswith(_UNSPACED) for c in letters)


def _name(cue: Cue) -> str:
    return f"the cue at frame {cue.frame}"

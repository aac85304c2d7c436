"""What is rolled out: prompts other than those that a model is watched with before it is quantized."""

from __future__ import annotations

from benchmarks.judging.casting import drift_cue
from serving.weights.loader import POCKET

PROMPTS = (
    "A man in a dark suit runs down a spiral staircase, the camera follows close behind, hard shadows.",
    "A flock of flamingos takes off from a shallow pink lake, slow motion, late afternoon sun.",
    "A tram climbs a steep street of old houses in light rain, cables humming, reflections on the rails.",
    "Macro shot of a bee on a lavender blossom, wings trembling, soft green background.",
    "A knight in rusty armor walks through a burning field at dusk, embers in the air, epic film.",
    "A paper boat floats down a gutter beside a busy road, seen from just above the water.",
    "Aerial view of a container ship in heavy seas, white foam over dark blue waves, grey sky.",
    "An old woman laughs at a kitchen table, steam rising from a cup of tea, morning light.",
)


def shown_prompts(model: str, count: int) -> list[str]:
    """So many for a model, from the beginning again where there are no more: seeds differ."""
    if model == POCKET:
        return [drift_cue(number).text for number in range(count)]
    return [PROMPTS[number % len(PROMPTS)] for number in range(count)]

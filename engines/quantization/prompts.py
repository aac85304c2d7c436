"""What a model is shown while its ranges are watched, where nobody says otherwise."""

from __future__ import annotations

PROMPTS = (
    "A woman in a red coat walks through a busy street at night, neon signs reflected in puddles, handheld shot.",
    "An old fisherman mends a net on a wooden pier at sunrise, gulls circling above, soft golden light.",
    "A white horse gallops along a beach, waves breaking behind it, seen from a drone that keeps pace.",
    "Close-up of a potter's hands shaping wet clay on a wheel, shallow depth of field, warm workshop light.",
    "A small robot waters plants in a greenhouse full of steam, animated film style, bright colors.",
    "Snow falls on a quiet mountain village in the blue hour, windows lit, the camera pans slowly to the right.",
    "A chef throws vegetables in a flaming pan in a crowded kitchen, sparks and smoke, fast cuts.",
    "An astronaut drifts past the window of a space station, the curved horizon of the earth below.",
    "A steam train crosses a stone viaduct through an autumn forest, leaves swirling in its wake.",
    "A child in a yellow raincoat jumps over puddles in a garden, slow motion, overcast sky.",
    "Timelapse of clouds over a desert canyon, shadows moving over red rock, wide angle.",
    "Two dancers in white turn in an empty theater, a single spotlight, dust in the air, black background.",
)
"""Of people, animals, places and machines, by day and by night, near and far, moving and still."""

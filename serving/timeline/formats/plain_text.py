"""Plain text as a timeline: one prompt a line, evenly spaced; blank lines and # comments are skipped."""

from __future__ import annotations

from serving.errors import TimelineError
from serving.timeline.cue import Blend, Cue, check_prompt
from serving.timeline.schedule import frame_at
from serving.timeline.timeline import MAX_CUES, MAX_SECONDS, Timeline

SECONDS_A_PROMPT = 5.0


def read_plain(text: str, seconds_a_prompt: float = SECONDS_A_PROMPT) -> Timeline:
    """The prompts of `text`, each in force for `seconds_a_prompt`."""
    if not 1 <= seconds_a_prompt <= MAX_SECONDS:
        raise TimelineError("seconds a prompt", f"{seconds_a_prompt:g} is outside 1..{MAX_SECONDS}")
    prompts: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        prompt = line.strip()
        if prompt == "" or prompt.startswith("#"):
            continue
        check_prompt(prompt, f"line {number}")
        prompts.append(prompt)
        if len(prompts) > MAX_CUES:
            raise TimelineError(
                f"line {number}", f"this is prompt number {len(prompts)}; at most {MAX_CUES} are read"
            )
    if not prompts:
        raise TimelineError("the file", "no line holds a prompt")
    cues = (Cue(frame_at(seconds_a_prompt * number), Blend.of(prompt)) for number, prompt in enumerate(prompts))
    return Timeline(tuple(cues), frame_at(seconds_a_prompt * len(prompts)))

"""Texts that can be prompts."""

from __future__ import annotations

from hypothesis import strategies as st

from serving.errors import TimelineError
from serving.timeline.cue import check_prompt


def is_prompt(text: str) -> bool:
    try:
        check_prompt(text, "here")
    except TimelineError:
        return False
    return True


def prompts(max_size: int) -> st.SearchStrategy[str]:
    return st.text(min_size=1, max_size=max_size).filter(is_prompt)

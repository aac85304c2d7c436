"""The text of a prompt, cleaned as Wan2.1 cleans it."""

from __future__ import annotations

import html
import re

import ftfy


def clean_prompt(text: str) -> str:
    """Repair mojibake, resolve HTML entities (twice: some are escaped again) and collapse whitespace.

    This is Wan2.1's cleaning. Beside a literal `<` it is not idempotent: there ftfy leaves entities alone,
    and one escaped more than twice loses two levels each time.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()

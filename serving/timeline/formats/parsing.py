"""YAML and JSON texts to documents: whatever is wrong in a text is a TimelineError."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import chain

from serving.errors import TimelineError
from serving.timeline.formats.document import MAX_DEPTH, Json, Node, phrase, shown, too_deep
from serving.timeline.formats.yaml_events import YamlReader

MOST_COMMAS, MOST_BRACKETS = 2_000_000, 1_000_000
"""Of a file, in its texts as well: far more than the longest timeline has, and what is read within seconds."""


def parse_json(text: str) -> Node:
    """Parse JSON. A field that occurs twice in a mapping is an error, as are NaN and infinity."""
    if text.count(",") > MOST_COMMAS or text.count("[") + text.count("{") > MOST_BRACKETS:
        raise TimelineError("the file", f"it has more than {MOST_COMMAS} values, which no timeline has")
    return _checked(load_json(text))


def load_json(text: str) -> Json:
    """What JSON says, with numbers that are not finite, and as deep as it likes, for readers that look."""
    try:
        value: Json = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise TimelineError(
            f"line {error.lineno}, column {error.colno}", f"no JSON: {phrase(error.msg)}"
        ) from None
    except RecursionError:
        raise too_deep("the file") from None
    except ValueError as error:
        if isinstance(error, TimelineError):
            raise
        # Python reads no whole number of more than 4300 digits.
        raise TimelineError("the file", f"a number cannot be read: {phrase(str(error))}") from None
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise TimelineError("the file", f"the field {shown(twice)} occurs twice in one mapping")
    return fields


def parse_yaml(text: str) -> Node:
    """Parse YAML as its version 1.2 reads JSON's types.

    `yes`, `1:30`, `010`, `0x1F`, `1_000` and dates are texts, `<<` is a field like any other. Fields that occur
    twice, numbers that are not finite, tags, and aliases to lists or mappings are errors.
    """
    return _checked(YamlReader(text).read())


def _checked(value: Json) -> Node:
    """Refuse numbers that are not finite, and depths that no timeline has."""
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(found, float) and not math.isfinite(found) for found in level):
            break
        level = list(chain.from_iterable(map(_children, level)))
        if not level:
            return Node("", value)
    raise _fault(Node("", value))


def _children(value: Json) -> list[Json]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _fault(root: Node) -> TimelineError:
    """What `_checked` has found, with its place."""
    level = [root]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node.value, float) and not math.isfinite(node.value):
                return node.error(f"{node.value} is not a finite number")
        level = [child for node in level for child in node.children()]
    return too_deep(level[0].place)

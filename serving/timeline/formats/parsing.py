"""YAML and JSON texts to documents: whatever is wrong in a text is a TimelineError."""

from __future__ import annotations

import json
import math
import re

import yaml

from serving.errors import TimelineError
from serving.timeline.formats.document import Json, Node, shown

MAX_DEPTH = 32

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

_TEXT_TAG, _LIST_TAG, _MAPPING_TAG = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


def parse_json(text: str) -> Node:
    """Parse JSON. A field that occurs twice in a mapping is an error, as are NaN and infinity."""
    try:
        value: Json = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise TimelineError(
            f"line {error.lineno}, column {error.colno}", f"no JSON: {_phrase(error.msg)}"
        ) from None
    except RecursionError:
        raise _too_deep("the file") from None
    except ValueError as error:
        if isinstance(error, TimelineError):
            raise
        # Python reads no whole number of more than 4300 digits.
        raise TimelineError("the file", f"a number cannot be read: {_phrase(str(error))}") from None
    return _checked(Node("", value))


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    fields: dict[str, Json] = {}
    for name, value in pairs:
        if name in fields:
            raise TimelineError("the file", f"the field {shown(name)} occurs twice in one mapping")
        fields[name] = value
    return fields


class _Loader(yaml.SafeLoader):
    """YAML's syntax without its ideas about plain scalars."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


def parse_yaml(text: str) -> Node:
    """Parse YAML as its version 1.2 reads JSON's types.

    `yes`, `1:30`, `010`, `0x1F`, `1_000` and dates are texts, `<<` is a field like any other. Fields that occur
    twice, numbers that are not finite, tags, and aliases to lists or mappings are errors.
    """
    try:
        root = yaml.compose(text, _Loader)
        value = None if root is None else _Reader().read(root)
    except yaml.MarkedYAMLError as error:
        raise TimelineError(
            _line(error.problem_mark), f"no YAML: {_phrase(error.problem or 'unreadable')}"
        ) from None
    except yaml.YAMLError as error:
        raise TimelineError("the file", f"no YAML: {_phrase(str(error))}") from None
    except RecursionError:
        raise _too_deep("the file") from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, TimelineError):
            raise
        # PyYAML leaves escapes of characters that do not exist, and absurd version numbers, to chr and int.
        raise TimelineError("the file", f"no YAML: {_phrase(str(error))}") from None
    return _checked(Node("", value))


class _Reader:
    """Composed YAML nodes to plain values."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def read(self, node: yaml.Node) -> Json:
        """The value of a node and of all below it."""
        if node.tag not in (_TEXT_TAG, _LIST_TAG, _MAPPING_TAG):
            raise TimelineError(_line(node.start_mark), f"the tag {shown(node.tag)} has no meaning in a timeline")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._seen:
            raise TimelineError(_line(node.start_mark), "an alias repeats this list or mapping; only texts can be")
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item) for item in node.value]
        return self._mapping(node)

    def _mapping(self, node: yaml.Node) -> dict[str, Json]:
        fields: dict[str, Json] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise TimelineError(_line(key.start_mark), "the name of a field must be a text")
            if key.value in fields:
                problem = f"the field {shown(key.value)} occurs twice in one mapping"
                raise TimelineError(_line(key.start_mark), problem)
            fields[key.value] = self.read(value)
        return fields

    def _scalar(self, node: yaml.ScalarNode) -> Json:
        text: str = node.value
        if node.style is not None:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text


def _checked(root: Node) -> Node:
    """Refuse numbers that are not finite, and depths that no timeline has."""
    level = [root]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node.value, float) and not math.isfinite(node.value):
                raise node.error(f"{node.value} is not a finite number")
        level = [child for node in level for child in node.children()]
        if not level:
            return root
    raise _too_deep(level[0].place)


def _too_deep(place: str) -> TimelineError:
    return TimelineError(place, f"lists and mappings are nested more than {MAX_DEPTH} deep")


def _line(mark: yaml.Mark | None) -> str:
    return "the file" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"


def _phrase(message: str) -> str:
    """The first line of another library's message, short enough for a sentence."""
    line = " ".join(message.splitlines()[:1]).rstrip(". ")
    return line if len(line) <= 200 else f"{line[:197]}..."

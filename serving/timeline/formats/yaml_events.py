"""YAML read event by event, by libyaml: nothing is built that a timeline cannot have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import yaml

from serving.errors import TimelineError
from serving.timeline.formats.document import MAX_DEPTH, Json, phrase, shown, too_deep

Event: TypeAlias = Any
"""Of yaml; its types do not say which event has what."""

MAX_REPEATED = 4 << 20
"""Characters that aliases repeat, all together: sixteen times as many as a file has."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

_TAGS = {
    yaml.ScalarEvent: "tag:yaml.org,2002:str",
    yaml.SequenceStartEvent: "tag:yaml.org,2002:seq",
    yaml.MappingStartEvent: "tag:yaml.org,2002:map",
}


class _Anchored(NamedTuple):
    """What an alias may repeat: read once, however often it is repeated."""

    event: Event
    value: Json


class YamlReader:
    """The one document of a text. Aliases repeat texts and numbers, and nothing larger."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Event] = yaml.parse(text, yaml.CSafeLoader)
        self._anchored: dict[str, _Anchored] = {}
        self._repeated = 0

    def read(self) -> Json:
        """Its value, None for a text without a document. Raises TimelineError, which says where."""
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            raise TimelineError(
                _line(error.problem_mark), f"no YAML: {phrase(error.problem or 'unreadable')}"
            ) from None
        except yaml.YAMLError as error:
            raise TimelineError("the file", f"no YAML: {phrase(str(error))}") from None
        except ValueError as error:
            if isinstance(error, TimelineError):
                raise
            # Python reads no whole number of more than 4300 digits.
            raise TimelineError("the file", f"no YAML: {phrase(str(error))}") from None

    def _document(self) -> Json:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 1)
        next(self._events)
        if not isinstance(after := next(self._events), yaml.StreamEndEvent):
            raise _error(after, "no YAML: but found another document")
        return value

    def _value(self, event: Event, depth: int) -> Json:
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event).value
        if event.tag not in (None, "!", _TAGS[type(event)]):
            raise _error(event, f"the tag {shown(event.tag)} has no meaning in a timeline")
        is_scalar = isinstance(event, yaml.ScalarEvent)
        value = _scalar(event) if is_scalar else None
        if event.anchor is not None:
            self._anchored[event.anchor] = _Anchored(event, value)
        if is_scalar:
            return value
        if depth > MAX_DEPTH:
            raise too_deep("the file")
        return self._list(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)

    def _aliased(self, alias: Event) -> _Anchored:
        repeated = self._anchored.get(alias.anchor)
        if repeated is None:
            raise _error(alias, f"no YAML: found undefined alias {shown(alias.anchor)}")
        if not isinstance(repeated.event, yaml.ScalarEvent):
            problem = "an alias repeats this list or mapping; only texts can be"
            raise _error(repeated.event, problem)
        self._repeated += len(repeated.event.value)
        if self._repeated > MAX_REPEATED:
            problem = f"aliases repeat more than {MAX_REPEATED} characters; write shorter texts, or JSON"
            raise _error(alias, problem)
        return repeated

    def _list(self, depth: int) -> list[Json]:
        found: list[Json] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, Json]:
        fields: dict[str, Json] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._name(event)
            if name in fields:
                raise _error(event, f"the field {shown(name)} occurs twice in one mapping")
            fields[name] = self._value(next(self._events), depth + 1)
        return fields

    def _name(self, event: Event) -> str:
        if isinstance(event, yaml.AliasEvent):
            return str(self._aliased(event).event.value)
        if not isinstance(event, yaml.ScalarEvent):
            raise _error(event, "the name of a field must be a text")
        self._value(event, 1)
        return str(event.value)


def _scalar(event: Event) -> Json:
    text: str = event.value
    if event.style or event.tag is not None:
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


def _error(event: Event, problem: str) -> TimelineError:
    return TimelineError(_line(event.start_mark), problem)


def _line(mark: Any) -> str:
    return "the file" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"

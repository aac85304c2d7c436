"""The values of a document, each of which knows its place in the file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from serving.errors import TimelineError
from serving.timeline.cue import check_whole

MAX_DEPTH = 32

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
T = TypeVar("T")

_PLAIN_NAME = re.compile(r"[\w$-]{1,60}", re.ASCII)


@dataclass(frozen=True)
class Node:
    """A value and its place, such as `cues[2].at`; reading it as something it is not raises TimelineError."""

    place: str
    value: Json

    def error(self, problem: str) -> TimelineError:
        """An error at this place."""
        return TimelineError(self.place or "the file", problem)

    def fields(self, known: Collection[str] | None = None) -> dict[str, Node]:
        """The fields of a mapping; with `known`, any other field is refused."""
        if not isinstance(self.value, dict):
            raise self.error(f"{shown(self.value)} must be a mapping of fields")
        unknown = [name for name in self.value if known is not None and name not in known]
        if unknown:
            raise self.error(f"the field {shown(unknown[0])} is unknown; known: {', '.join(known or ())}")
        return {name: Node(self._within(name), value) for name, value in self.value.items()}

    def length(self) -> int:
        """How many items a list has."""
        if not isinstance(self.value, list):
            raise self.error(f"{shown(self.value)} must be a list")
        return len(self.value)

    def items(self, most: int | None = None) -> list[Node]:
        """The items of a list, of which there are at most `most`."""
        if most is not None and self.length() > most:
            raise self.error(f"the list has {self.length()} items; at most {most} are read")
        if not isinstance(self.value, list):
            raise self.error(f"{shown(self.value)} must be a list")
        return [Node(f"{self.place}[{number}]", value) for number, value in enumerate(self.value)]

    def children(self) -> list[Node]:
        """What a list or mapping holds; nothing for any other value."""
        if isinstance(self.value, dict):
            return list(self.fields().values())
        return self.items() if isinstance(self.value, list) else []

    def text(self, noun: str = "text") -> str:
        """A text, of whole characters; `noun` is what to call it."""
        if not isinstance(self.value, str):
            raise self.error(f"{shown(self.value)} must be a text")
        check_whole(self.value, self.place or "the file", noun)
        return self.value

    def whole(self) -> int:
        """A whole number; 4.0 is one."""
        whole = isinstance(self.value, int) or (isinstance(self.value, float) and self.value.is_integer())
        if not whole or isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(f"{shown(self.value)} must be a whole number")
        return int(self.value)

    def number(self, low: float, high: float) -> float:
        """A number within `low..high`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(f"{shown(self.value)} must be a number")
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise self.error(f"{self.value} is not a finite number")
        if not low <= self.value <= high:
            raise self.error(f"{shown(self.value)} is outside {_plain(low)}..{_plain(high)}")
        return float(self.value)

    def _within(self, name: str) -> str:
        name = name if _PLAIN_NAME.fullmatch(name) else shown(name)
        return f"{self.place}.{name}" if self.place else name


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def maybe(node: Node | None, read: Callable[[Node], T]) -> T | None:
    """What `read` makes of a field, None where the field is absent."""
    return None if node is None else read(node)


def shown(value: Json) -> str:
    """A value as messages quote it: one short line, whatever it is."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 1 << 80:
        return "a number of more than 24 digits"
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def too_deep(place: str) -> TimelineError:
    """The error of what is nested as no timeline is."""
    return TimelineError(place, f"lists and mappings are nested more than {MAX_DEPTH} deep")


def phrase(message: str) -> str:
    """The first line of another library's message, short enough for a sentence."""
    line = " ".join(message.splitlines()[:1]).rstrip(". ")
    return line if len(line) <= 200 else f"{line[:197]}..."

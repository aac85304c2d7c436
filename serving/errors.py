"""What can go wrong in serving.

ServingError
|-- DownloadError   weights that cannot be downloaded, or that are not what was downloaded
|-- FilmError       a film that cannot be written, read or made again
|-- ModelError      a model whose weights are not here, or not whole
`-- TimelineError   a timeline that cannot be used; also a ValueError
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of everything that serving raises on purpose."""


class DownloadError(ServingError):
    """Weights that cannot be downloaded or checked. The message says what to do about it."""


class FilmError(ServingError):
    """A film that cannot be written, read or made again."""


class ModelError(ServingError):
    """A model whose weights are not here, or not whole. The message says what to do about it."""


class TimelineError(ServingError, ValueError):
    """A timeline that cannot be used.

    `place` says where in it (`cues[2].at`), `problem` names the value and the rule, without a full stop.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(place, problem)
        self.place = place
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"

    def within(self, outer: str) -> TimelineError:
        """The same error, seen from `outer`, of which its place is a part."""
        return TimelineError(f"{outer}.{self.place}", self.problem)

"""What can go wrong in serving.

ServingError
|-- ClipError           a video file that cannot be used as input
|-- DownloadError       weights that cannot be downloaded, or that are not what was downloaded
|-- FilmError           a film that cannot be written, read or made again
|-- InsecureToken       a token that would be sent to another host in the clear
|-- ModelError          a model whose weights are not here, or not whole
|-- ServerError         a server that does not start, or of which a part has died
|-- SessionError        a request about a session that cannot be granted
|   |-- InvalidRequest  a field that cannot be used
|   |   `-- CommandIdReused     ids of a command that were used before, for something else
|   |-- SessionNotFound no session has this id
|   |-- WrongState      a command that the session's present state does not allow
|   |   `-- ControllerReplaced  another controller steers the session now
|   |-- FrameOutOfRange a frame that is over, or that is not kept any more
|   |-- SlotsFull       no replica has room or a frame budget left
|   |   `-- MemoryFull  a device has no memory left for what the session needs
|   |-- LimitReached    a limit of the server or of the caller's token
|   |   `-- TooManyRequests     a caller who asks too often, and may come back
|   |-- NotAllowed      a token that is missing or unknown
|   |   |-- NotOperator   what only operators may do
|   |   `-- OriginNotAllowed  a page that may not call this server
|   |-- SessionLost     every copy of the session is lost
|   |-- SessionFailed   an error of the server that ended the session
|   `-- ReplicaLost     a replica that died or fell silent; the request may be made again
|       |-- ReplicaDied     its process is known to be dead
|       |-- NoLease         the copy may not answer at the moment, or not any more
|       |-- RegisterUnavailable  nobody can say who owns a session
|       |-- SessionMoved    it goes on on another server
|       `-- SessionOnItsWay  it may come from another server, and is not here yet
|-- TimelineError       a timeline that cannot be used; also a ValueError
`-- Unforeseen          an error of the server by which one request came to nothing
"""

from __future__ import annotations

from typing_extensions import override


class ServingError(Exception):
    """Base of everything that serving raises on purpose."""


class ClipError(ServingError):
    """A video file that cannot be used as input. The message names the file, the value and the remedy."""


class DownloadError(ServingError):
    """Weights that cannot be downloaded or checked. The message says what to do about it."""


class FilmError(ServingError):
    """A film that cannot be written, read or made again."""


class InsecureToken(ServingError):
    """A token that would be sent to another host in the clear."""


class ModelError(ServingError):
    """A model whose weights are not here, or not whole. The message says what to do about it."""


class ServerError(ServingError):
    """A server that does not start, or that ended because a part of it died."""


class SessionError(ServingError):
    """A request about a session that cannot be granted. The message names the value and the remedy."""


class InvalidRequest(SessionError):
    """A field of the request that cannot be used."""


class CommandIdReused(InvalidRequest):
    """The command's ids were used before, for something else."""


class SessionNotFound(SessionError):
    """No session has this id, or has it any more."""


class WrongState(SessionError):
    """A command that the session's present state does not allow."""


class ControllerReplaced(WrongState):
    """Another controller steers the session now; this one is a spectator until it attaches again."""


class FrameOutOfRange(SessionError):
    """A frame that is over, or that is not kept any more. The message names the nearest one possible."""


class RetryLater(Exception):
    """What is refused now, and may be taken after `retry_after_s`, where that is known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    @override
    def __str__(self) -> str:
        return self.message


class SlotsFull(RetryLater, SessionError):
    """No replica has room or a frame budget left for another session."""


class MemoryFull(SlotsFull):
    """A device has no memory left for what the session needs."""


class LimitReached(SessionError):
    """A limit of the server, or of the caller's token."""


class TooManyRequests(RetryLater, LimitReached):
    """A caller who asks too often; the same request is taken again after `retry_after_s`."""

    retry_after_s: float

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)


class NotAllowed(SessionError):
    """A token that is missing or unknown."""


class NotOperator(NotAllowed):
    """What only operators may do; their token is needed."""


class OriginNotAllowed(NotAllowed):
    """A page that may not call this server, or a name that leads here and is not the server's."""


class ReplicaLost(SessionError):
    """A replica that died or fell silent. The request may be made again."""


class ReplicaDied(ReplicaLost):
    """A replica whose process is dead, as the live node says that it ran on."""


class NoLease(ReplicaLost):
    """A copy of a session that may not answer: its lease is over, or another copy is the owner."""


class RegisterUnavailable(ReplicaLost):
    """The register of owners cannot be reached. What was to be written there may be written later."""


class SessionMoved(ReplicaLost):
    """A session that goes on on another server, or new ones that are to be opened there.

    `server` is where to ask: HOST:PORT, or the same address over a new connection where it is empty. `page` is the
    URL of that server's page, if it is said.
    """

    def __init__(self, message: str, server: str = "", page: str = "") -> None:
        super().__init__(message, server, page)
        self.message = message
        self.server = server
        self.page = page

    @override
    def __str__(self) -> str:
        return self.message


class SessionOnItsWay(ReplicaLost):
    """A session that may be about to come from the server that clients reached here before. Ask again."""


class SessionLost(SessionError):
    """A session of which every copy is lost. It cannot go on."""


class SessionFailed(SessionError):
    """A session that an error of the server has ended."""

    @classmethod
    def of(cls, doing: str, error: Exception) -> SessionFailed:
        """An error that nobody foresaw."""
        return cls(f"the session was ended by an error of the server in {doing}: {type(error).__name__}: {error}")


class Unforeseen(ServingError):
    """An error of the server that nobody foresaw, by which one request came to nothing. Its logs say more."""


class TimelineError(ServingError, ValueError):
    """A timeline that cannot be used.

    `place` says where in it (`cues[2].at`), `problem` names the value and the rule, without a full stop.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(place, problem)
        self.place = place
        self.problem = problem

    @override
    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"

    def within(self, outer: str) -> TimelineError:
        """The same error, seen from `outer`, of which its place is a part."""
        return TimelineError(f"{outer}.{self.place}", self.problem)

"""What the ownership protocol has its manager do."""

from __future__ import annotations

from typing import NamedTuple

from serving.replication.register import Destination, Hold, Record


class Prepare(NamedTuple):
    """Open the session from the standby copy as `attempt`, on another replica than `doubted` if there is one."""

    attempt: str
    doubted: str | None


class Move(NamedTuple):
    """Have the owner yield its lease for the sake of this `move`, and open what it hands over as `attempt`.

    On a replica that stays. Call `yielded`, then `moved`; or `prepare_failed`.
    """

    attempt: str
    move: int


class Depart(NamedTuple):
    """Have the owner yield its lease for the sake of this `move`, and say how it stands, for another server.

    Call `departed`; or `prepare_failed`. `attempt` is what the other server is to know this try by.
    """

    attempt: str
    move: int
    destination: Destination


class Settle(NamedTuple):
    """Have the other server open what has departed, if this manager has it and has not asked for that yet.

    Where it does not say that it has, whatever else it says, find out whether it has, and have it never do so from
    then on if it has not: the request may be on its way twice. Call `settled`, or `unsettled` without an answer.
    """

    hold: Hold


class CancelAttempt(NamedTuple):
    """Close the attempt wherever it was sent: it will not be committed."""

    attempt: str


class Commit(NamedTuple):
    """Create the epoch, then call `committed` or `commit_unreachable`."""

    epoch: int
    record: Record


class LookInRegister(NamedTuple):
    """Read the session's latest epoch, then call `looked`; where it cannot be read, nothing."""


class FollowRegister(NamedTuple):
    """This manager is not the standby any more; who is, or that the session has ended, is in the register."""


class SessionLost(NamedTuple):
    """Both copies are gone. The register says so already; the viewers are to be told."""

    reason: str


Action = Prepare | Move | Depart | Settle | CancelAttempt | Commit | LookInRegister | FollowRegister | SessionLost

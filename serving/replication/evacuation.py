"""How a session goes to another server, which has a register of its own.

Its owner yields and says how it stands. The next epoch holds it: whoever is its standby from then on, this manager
or one that adopts it, grants no lease. Only then the other server is told of it, which begins it by creating its
first epoch there, with the transfer's name as the first attempt. That epoch decides. Once it is there the session
ends here as moved. Where the answer is lost, or the manager, the other server is asked; if the epoch is not there
it is created with the end of the transfer, which can never begin after that, and the session goes on here.

So a session that is held has one copy that may begin, and it is known which one before the other goes on.
"""

from __future__ import annotations

from serving.errors import RegisterUnavailable
from serving.replication.register import Ended, Owner, Register


async def settle(register: Register, session_id: str, transfer: str) -> bool:
    """Whether a session has begun here by a transfer, which does not begin it later if it has not.

    Raises RegisterUnavailable also while a session of this id that is over is remembered here: once it is
    forgotten the transfer might begin.
    """
    never = Ended(f"its evacuation {transfer} was cancelled before it had come")
    first = await register.first(session_id)
    if first is None and await register.create(session_id, 1, never):
        return False
    first = first or await register.first(session_id)
    if first == never:
        return False
    if not isinstance(first, Owner):
        raise RegisterUnavailable(f"another session {session_id} is being forgotten here; ask again")
    return first.attempt == transfer

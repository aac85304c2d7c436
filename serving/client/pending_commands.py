"""Commands of a client that have no answer yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc

from serving.client.backoff import Backoff
from serving.errors import TooManyRequests
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.status import read_error, retry_after_of


@dataclass
class _Pending:
    command: pb.Command
    answer: asyncio.Future[pb.Receipt]
    backoff: Backoff


class PendingCommands:
    """In the order in which they were given. All may be sent again at any time: the server does each once."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._pending: dict[str, _Pending] = {}

    def add(self, command: pb.Command) -> asyncio.Future[pb.Receipt]:
        """A command is to be sent; what it gives is the first answer, or the error with which it is refused."""
        answer = asyncio.get_running_loop().create_future()
        self._pending[command.id] = _Pending(command, answer, Backoff(self._patience_s))
        return answer

    def remove(self, command: pb.Command) -> None:
        """Nobody waits for the answer any more."""
        self._pending.pop(command.id, None)

    @property
    def unanswered(self) -> list[pb.Command]:
        """Those to be sent over a new stream."""
        return [pending.command for pending in self._pending.values() if not pending.answer.done()]

    def knows(self, receipt: pb.Receipt) -> bool:
        """Whether somebody waits for what a receipt answers."""
        return receipt.command_id in self._pending

    def settle(self, receipt: pb.Receipt, now: float) -> float | None:
        """Give an answer to who waits for it; one that only says "ask again" gives the seconds until then.

        That a cue has applied, or was dropped, is no answer: it comes after one, which may have been lost.
        """
        pending = self._pending.get(receipt.command_id)
        if pending is None or pending.answer.done():
            return None
        if receipt.stage == pb.RECEIPT_STAGE_ACCEPTED:
            pending.answer.set_result(receipt)
        elif receipt.stage == pb.RECEIPT_STAGE_REFUSED:
            error = read_error(receipt.error)
            is_lost = receipt.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
            may_work_later = is_lost or isinstance(error, TooManyRequests)
            wait_s = pending.backoff.wait_s(now) if may_work_later else None
            if wait_s is not None:
                return max(wait_s, retry_after_of(error) or 0.0)
            pending.answer.set_exception(error)
        return None

    def fail(self, error: BaseException) -> None:
        """No answers come any more."""
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(error)

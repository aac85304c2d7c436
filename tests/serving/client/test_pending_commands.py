from __future__ import annotations

import asyncio

import pytest

from serving.client.pending_commands import PendingCommands
from serving.errors import InvalidRequest, ReplicaLost, ServingError, Unforeseen
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.status import write_error


@pytest.mark.parametrize(
    ("error", "again"), [(ReplicaLost("gone"), True), (Unforeseen("a bug"), False), (InvalidRequest("no"), False)]
)
def test_a_command_is_sent_again_only_where_the_server_says_that_it_may_work_later(
    error: ServingError, again: bool
) -> None:
    async def settle() -> tuple[bool, bool]:
        pending = PendingCommands(20.0)
        answer = pending.add(pb.Command(id="one"))
        refused = pb.Receipt(command_id="one", stage=pb.RECEIPT_STAGE_REFUSED, error=write_error(error))
        wait_s = pending.settle(refused, 0.0)
        if answer.done():
            assert str(error) in str(answer.exception())
        return wait_s is not None, answer.done()

    assert asyncio.run(settle()) == (again, not again)

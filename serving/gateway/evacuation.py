"""A server's sessions go to another one: what operators ask for, and what the other server is asked.

Only operators may: whoever can import a session chooses whose it is.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from typing_extensions import override

from engines.errors import ConfigError
from serving.auth import Caller, OperatorToken
from serving.client.operator import OperatorCalls
from serving.config import ServerConfig
from serving.errors import InvalidRequest, NotOperator, ServingError, SlotsFull, WrongState
from serving.gateway.evacuated_session import arrived, evacuated
from serving.gateway.ownership.session_directory import moved
from serving.gateway.ownership.shared_answer import SharedAnswer
from serving.gateway.ownership.standby_host import OtherServers
from serving.gateway.session_options import OptionsChecker
from serving.gateway.session_snapshot import FORMATS, unpack
from serving.hosts import host_of_target, is_host_and_port, is_loopback
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import require_bytes
from serving.replication.evacuation import settle
from serving.replication.messages import Departure, ResumeState, SessionSpec
from serving.replication.public_address import PublicAddress
from serving.replication.register import Destination, Owner, Register

logger = logging.getLogger(__name__)

_PAGE = re.compile(r"https?://[0-9A-Za-z._\[\]:-]{1,255}(/[0-9A-Za-z._~/-]{0,255})?")

LOOK_EVERY_S, LOOK_AGAIN_S = 10.0, 2.0
"""How often a manager looks where the address leads that clients know, and how soon after another answer."""


class OtherServersByGrpc(OtherServers):
    """Calls other servers with the token of their operators, which is that of this one's.

    It goes to other machines in the clear, and so only where this server is `insecure`.
    """

    def __init__(self, token: Path | None, snapshot_bytes: int, *, insecure: bool = False) -> None:
        self._token = OperatorToken(token)
        self._insecure = insecure
        self._snapshot_bytes = snapshot_bytes

    async def describe(self, address: str) -> pb.GetServerInfoResponse:
        """Which server is there."""
        return await self._at(address).server_info()

    @override
    async def offer(self, to: Destination, session_id: str, caller: str) -> None:
        request = pb.OfferSessionRequest(cluster=to.cluster, session_id=session_id, caller=caller)
        await self._at(to.address).offer(request)

    @override
    async def send(self, to: Destination, transfer: str, departure: Departure) -> None:
        session = await asyncio.to_thread(evacuated, departure, self._snapshot_bytes)
        request = pb.ImportSessionRequest(cluster=to.cluster, transfer=transfer, session=session)
        await self._at(to.address).send(request)

    @override
    async def settle(self, to: Destination, session_id: str, transfer: str) -> bool:
        request = pb.SettleTransferRequest(cluster=to.cluster, session_id=session_id, transfer=transfer)
        return await self._at(to.address).settle(request)

    def _at(self, address: str) -> OperatorCalls:
        if not (self._insecure or is_loopback(host_of_target(address))):
            raise WrongState(
                f"the operators' token would go to {address} in the clear; start this server with --insecure "
                "where nobody else can read it on its way"
            )
        try:
            token = self._token.read()
        except ConfigError as error:
            raise NotOperator(str(error)) from error
        if token is None:
            raise NotOperator("this server has no operators' token to show to another one; set operator_token")
        return OperatorCalls(address, token)


class Evacuation:
    """What one manager answers of it.

    `callers` are those that may have sessions here, `rooms` free slots, `public` the address that clients know;
    `reading` has the threads that read snapshots.
    """

    def __init__(
        self,
        register: Register,
        config: ServerConfig,
        options: OptionsChecker,
        rooms: SharedAnswer[dict[str, int]],
        callers: Callable[[], tuple[str, ...]],
        others: OtherServersByGrpc,
        public: PublicAddress,
        reading: Executor,
    ) -> None:
        self._reading = reading
        self._register, self._config, self._options = register, config, options
        self._rooms, self._callers, self._others, self._public = rooms, callers, others, public

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Which server this is, and what it has room for."""
        rooms = await self._rooms.get()
        return pb.GetServerInfoResponse(
            version=version("longtake"),
            model=self._config.model,
            cluster=await self._register.cluster(),
            snapshot_formats=FORMATS,
            free_slots=sum(rooms.values()),
        )

    async def require_stays(self) -> None:
        """Raise SessionMoved where new sessions are not opened here any more."""
        if (destination := await self._register.destination()) is not None:
            raise moved(destination)

    # Of the server that is left

    async def evacuate(self, request: pb.EvacuateServerRequest, caller: Caller) -> pb.EvacuateServerResponse:
        """Begin to send all sessions to another server, or stop. Raises NotOperator for any other caller."""
        self._require_operator(caller)
        if request.gone and request.to:
            raise InvalidRequest("`gone` is said of a server that nothing is sent to any more: leave `to` empty")
        await self._register.evacuate_to(await self._destination(request) if request.to else None)
        if request.gone:
            await self._keep_held()
        owners = await self._register.open_sessions()
        return pb.EvacuateServerResponse(
            sessions=len(owners), held=sum(owner.held is not None for owner in owners.values())
        )

    async def _keep_held(self) -> None:
        """Have sessions that are held go on here. Their managers find that in the register."""
        for session_id in await self._register.open_sessions():
            top = await self._register.latest(session_id)
            if top is not None and isinstance(top.record, Owner) and top.record.held is not None:
                await self._register.create(session_id, top.epoch + 1, replace(top.record, held=None))

    async def _destination(self, request: pb.EvacuateServerRequest) -> Destination:
        for name, address in (("to", request.to), ("public", request.public or request.to)):
            if not is_host_and_port(address):
                raise InvalidRequest(f"{name} is {address[:80]!r}, which is not of the form HOST:PORT")
        if request.page and _PAGE.fullmatch(request.page) is None:
            raise InvalidRequest(f"page is {request.page[:80]!r}, which is not of the form https://HOST/PATH")
        there, here = await self._others.describe(request.to), await self.server_info()
        if there.cluster == here.cluster:
            raise InvalidRequest(f"{request.to} is this server; say where another one is")
        if there.model != here.model:
            raise WrongState(f"{request.to} has the model {there.model!r}, and sessions here have {here.model!r}")
        if FORMATS[0] not in there.snapshot_formats:
            read = ", ".join(there.snapshot_formats)
            raise WrongState(f"{request.to}, release {there.version}, reads {read} and not {FORMATS[0]}")
        return Destination(request.to, there.cluster, request.public, request.page)

    async def follow(self, address: str) -> None:
        """Have all sessions go where the `address` leads that clients know, once that is another cluster.

        For as long as this process is there. Where nobody answers, or the other one cannot take them, all stays as
        it is, and it looks again.
        """
        public, followed, said, led_here = self._public, None, "", False
        while True:
            try:
                there, own = await self._others.describe(address), await self._register.cluster()
                public.answered(there.cluster, own)
                if public.leads_here and not led_here:
                    logger.info("public address leads here", extra={"address": address})
                led_here = public.leads_here
                if public.successor != followed:
                    await self._lead(address, public.successor)
                    followed = public.successor
                said = ""
            except ServingError as error:
                if said != (said := str(error)):
                    logger.warning("public address not followed", extra={"address": address, "why": said})
            await asyncio.sleep(LOOK_EVERY_S if public.is_sure else LOOK_AGAIN_S)

    async def _lead(self, address: str, successor: str | None) -> None:
        """Where an operator has said that sessions go elsewhere, they do."""
        before = await self._register.destination()
        if before is not None and before.address != address:
            return
        request = pb.EvacuateServerRequest(to=address)
        await self._register.evacuate_to(None if successor is None else await self._destination(request))
        logger.info("public address followed", extra={"address": address, "cluster": successor or "here"})

    # Of the server that they go to

    async def offer(self, request: pb.OfferSessionRequest, caller: Caller) -> None:
        """Raise a ServingError unless a session of another server could go on here."""
        await self._require_meant(request.cluster, caller)
        await self.require_stays()
        self._require_known(request.caller)
        if await self._register.first(request.session_id) is not None:
            raise WrongState(f"a session {request.session_id} is here, or was a moment ago")
        if not sum((await self._rooms.get()).values()):
            raise SlotsFull("no slot is free for a session of another server")

    async def arrival(self, request: pb.ImportSessionRequest, caller: Caller) -> tuple[SessionSpec, ResumeState]:
        """A session that is to go on here. Raises InvalidRequest or LimitReached for what cannot be."""
        await self._require_meant(request.cluster, caller)
        await self.require_stays()
        left = request.session
        self._require_known(left.caller)
        require_bytes("the snapshot", len(left.snapshot), self._config.limits.snapshot_bytes)
        loop = asyncio.get_running_loop()
        saved = await loop.run_in_executor(self._reading, unpack, left.snapshot)
        for name, value in (("transfer", request.transfer), ("session id", saved.session.id)):
            _require_uuid(name, value)
        spec = self._options.read(saved.session.id, saved.session.options, Caller(left.caller))
        created = saved.session.create_time
        spec = replace(spec, created=created.seconds + created.nanos / 1e9)
        return spec, await loop.run_in_executor(self._reading, arrived, left, saved, spec)

    async def require_arrived(self, session_id: str, transfer: str) -> None:
        """Raise WrongState unless the session that is here came by this transfer."""
        first = await self._register.first(session_id)
        if not isinstance(first, Owner) or first.attempt != transfer:
            raise WrongState(f"another session {session_id} is here, or was a moment ago")

    async def settle(self, request: pb.SettleTransferRequest, caller: Caller) -> pb.SettleTransferResponse:
        """Whether a session that was sent has begun here; if not, it never will by that transfer."""
        await self._require_meant(request.cluster, caller)
        for name, value in (("transfer", request.transfer), ("session id", request.session_id)):
            _require_uuid(name, value)
        begun = await settle(self._register, request.session_id, request.transfer)
        return pb.SettleTransferResponse(begun=begun)

    def _require_operator(self, caller: Caller) -> None:
        if not caller.is_operator:
            raise NotOperator("only operators may ask this; send the token in the file that operator_token names")

    async def _require_meant(self, cluster: str, caller: Caller) -> None:
        self._require_operator(caller)
        if cluster != (here := await self._register.cluster()):
            raise WrongState(f"this is the server {here}, and {cluster[:80]!r} is meant")

    def _require_known(self, caller: str) -> None:
        if caller not in self._callers():
            raise InvalidRequest(f"the caller {caller[:80]!r} has no token here; servers need the same callers")


def _require_uuid(name: str, value: str) -> None:
    try:
        uuid.UUID(value)
    except ValueError:
        raise InvalidRequest(f"the {name} is {value[:80]!r}, which is no UUID") from None

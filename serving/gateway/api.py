"""What gRPC and the web ask of the sessions behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from serving.auth import Caller
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent


class SessionAPI(Protocol):
    """The rules of `Sessions` in `proto/longtake/v1/sessions.proto`, without a transport.

    Every method raises SessionError or TimelineError where it refuses; a stream may also raise in its middle.
    """

    def authenticate(self, token: str | None) -> Caller:
        """Whose token this is, of whom one request is counted; None where the request carried none.

        Raises NotAllowed, and TooManyRequests as `admit` does.
        """
        ...

    def admit(self, caller: Caller) -> None:
        """Count one more request on a connection. Raises TooManyRequests, which says when to come back.

        Commands of `interact` are counted without that.
        """
        ...

    async def describe_server(self, caller: Caller) -> pb.DescribeServerResponse:
        """What is generated here."""
        ...

    async def server_info(self, caller: Caller) -> pb.GetServerInfoResponse:
        """Which server this is."""
        ...

    async def evacuate(self, request: pb.EvacuateServerRequest, caller: Caller) -> pb.EvacuateServerResponse:
        """Have all sessions go to another server. This and the next three raise NotOperator for other callers."""
        ...

    async def offer(self, request: pb.OfferSessionRequest, caller: Caller) -> None:
        """Whether a session of another server would be taken; raises what keeps it from that."""
        ...

    async def import_session(self, request: pb.ImportSessionRequest, caller: Caller) -> pb.Session:
        """Have it go on here."""
        ...

    async def settle(self, request: pb.SettleTransferRequest, caller: Caller) -> pb.SettleTransferResponse:
        """Whether it does, and if not have it never do so by this transfer."""
        ...

    async def create(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.Session:
        """Open a session."""
        ...

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        """How a session stands."""
        ...

    async def list(self, caller: Caller) -> list[pb.Session]:
        """The caller's sessions, the oldest first, without their cues."""
        ...

    async def list_applied(self, request: pb.ListAppliedCuesRequest, caller: Caller) -> pb.ListAppliedCuesResponse:
        """A page of the cues that have applied in a session."""
        ...

    async def list_pending(self, request: pb.ListPendingCuesRequest, caller: Caller) -> pb.ListPendingCuesResponse:
        """A page of the cues that have not applied yet in a session."""
        ...

    async def delete(self, session_id: str, caller: Caller) -> None:
        """End a session and free its room."""
        ...

    async def command(self, session_id: str, command: pb.Command, caller: Caller) -> pb.Receipt:
        """Carry out one command of a caller that holds no stream. The receipt says that it is accepted."""
        ...

    async def fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.Session:
        """Open a second session with the same past."""
        ...

    async def snapshot(self, request: pb.SnapshotSessionRequest, caller: Caller) -> pb.SnapshotSessionResponse:
        """Return the bytes from which `restore` goes on."""
        ...

    async def restore(self, request: pb.RestoreSessionRequest, caller: Caller) -> pb.Session:
        """Open a session that goes on where a snapshot was taken."""
        ...

    async def start_recording(self, request: pb.StartRecordingRequest, caller: Caller) -> pb.Recording:
        """Begin to write the session's chunks to a file, with the next chunk."""
        ...

    async def stop_recording(self, request: pb.StopRecordingRequest, caller: Caller) -> pb.Recording:
        """Finish the file."""
        ...

    async def list_recordings(
        self, request: pb.ListRecordingsRequest, caller: Caller
    ) -> pb.ListRecordingsResponse:
        """A page of the caller's finished recordings."""
        ...

    async def delete_recording(self, name: str, caller: Caller) -> None:
        """Remove a finished recording."""
        ...

    def read_recording(self, name: str, caller: Caller) -> AsyncIterator[bytes]:
        """The bytes of a finished recording, in pieces of at most 256 KiB."""
        ...

    def recording_file(self, name: str, caller: Caller) -> Path:
        """Where the file of a finished recording lies on this machine."""
        ...

    def watch(self, request: pb.WatchRequest, caller: Caller) -> AsyncIterator[SerializedEvent]:
        """A session's events for a spectator, its state first."""
        ...

    def interact(self, commands: AsyncIterator[pb.Command], caller: Caller) -> AsyncIterator[SerializedEvent]:
        """A session's events for its controller, whose first command is `attach`.

        A refused command is answered by a receipt and ends nothing, and nor does the end of the commands.
        """
        ...

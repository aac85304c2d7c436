"""What a session takes along to another server, beside what a client's snapshot has of it."""

from __future__ import annotations

from collections.abc import Iterable

from serving.errors import InvalidRequest
from serving.media.chunk import Chunk
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import write_receipt
from serving.protocol.events import read_chunk, write_chunk
from serving.protocol.status import read_error, write_error
from serving.session.receipt_log import MOST_RECEIPTS
from serving.session.types import CommandKind, LoggedReceipt, Receipt, Refusal, SessionRecord, Stage


def write_evacuated(caller: str, record: SessionRecord, chunks: Iterable[Chunk]) -> pb.EvacuatedSession:
    """All but the snapshot."""
    return pb.EvacuatedSession(
        caller=caller,
        chunks=map(write_chunk, chunks),
        controller=record.controller,
        seq=record.seq,
        pending_command_ids=[pending.command_id for pending in record.pending],
        answered=map(_write_answer, record.receipts),
    )


def read_answered(evacuated: pb.EvacuatedSession) -> tuple[LoggedReceipt, ...]:
    """The first answers to the session's commands. Raises InvalidRequest for what is none, or too many."""
    if len(evacuated.answered) > MOST_RECEIPTS:
        raise InvalidRequest(f"{len(evacuated.answered)} commands are answered; a session keeps {MOST_RECEIPTS}")
    return tuple(map(_read_answer, evacuated.answered))


def read_chunks(evacuated: pb.EvacuatedSession, next_frame: int) -> tuple[Chunk, ...]:
    """What viewers may ask for. Raises InvalidRequest unless that leads up to `next_frame` without a gap."""
    chunks = tuple(map(read_chunk, evacuated.chunks))
    ends = [chunk.first_frame for chunk in chunks[1:]] + [next_frame]
    for chunk, end in zip(chunks, ends, strict=False):
        if chunk.end_frame != end:
            raise InvalidRequest(f"chunks of the session end before frame {chunk.end_frame}, and go on with {end}")
    return chunks


def _write_answer(entry: LoggedReceipt) -> pb.AnsweredCommand:
    answered = pb.AnsweredCommand(client_id=entry.client_id, command_id=entry.command_id, content=entry.content)
    if isinstance(entry.answer, Receipt):
        answered.receipt.CopyFrom(write_receipt(entry.answer))
    else:
        answered.refusal.CopyFrom(write_error(entry.answer.error()))
    return answered


def _read_answer(answered: pb.AnsweredCommand) -> LoggedReceipt:
    receipt, answer = answered.receipt, Refusal.of(read_error(answered.refusal))
    ids = answered.client_id, answered.command_id
    if not answered.HasField("receipt"):
        return LoggedReceipt(*ids, answered.content, answer)
    try:
        command, stage = CommandKind(receipt.command), Stage(receipt.stage)
    except ValueError as error:
        raise InvalidRequest(f"the answer to command {answered.command_id!r} cannot be read: {error}") from None
    accepted = Receipt(receipt.command_id, command, stage, receipt.frame, receipt.cue_frame)
    return LoggedReceipt(*ids, answered.content, accepted)

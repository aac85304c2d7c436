"""Pictures decoded and encoded ahead of their blocks, in a thread of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.errors import EngineError
from engines.video.input import InputEncoder, InputState
from serving.errors import ServingError, SessionFailed
from serving.media.clips.picture_scaler import Picture
from serving.media.jpeg import read_jpeg, write_jpeg
from serving.pipeline.engine_errors import refusal
from serving.pipeline.stages import in_thread
from serving.replication.messages import BlockPictures
from serving.worker.pictures.picture_decoder import DecodedPicture, SentPicture
from serving.worker.pictures.session_input import EncodedInput, SessionInput

logger = logging.getLogger(__name__)

T = TypeVar("T")

Failed = Callable[[ServingError], None]


class InputStage:
    """Encodes the pictures of sessions; `executor` has one thread, beside the one that generates."""

    def __init__(self, encoder: InputEncoder, executor: Executor) -> None:
        self._encoder = encoder
        self._executor = executor

    def warm_up(self, streams: Sequence[VideoStreamConfig]) -> None:
        """Encode pictures like those of `streams` in the thread that will; returns when that is done."""
        for stream in streams:
            self._executor.submit(self._encoder.warm_up, stream).result()

    def stop(self) -> None:
        """Encode nothing more."""
        self._executor.shutdown()

    def begin(self, pictures: SessionInput, wake: Callable[[], None], failed: Failed) -> None:
        """Do what there is to do for a session, if nothing is being done for it.

        `wake` is called once a block's input is here, and `failed` where none can be made.
        """
        if pictures.working is not None:
            return
        if sent := pictures.take_sent():
            pictures.working = asyncio.create_task(self._decode(pictures, sent, wake, failed))
        elif group := pictures.take_pictures():
            pictures.working = asyncio.create_task(self._encode(pictures, group, wake, failed))

    async def _decode(
        self, pictures: SessionInput, sent: Sequence[SentPicture | None], wake: Callable[[], None], failed: Failed
    ) -> None:
        def decoded() -> list[list[DecodedPicture]]:
            return [[] if unit is None else pictures.decoder.decode(unit) for unit in sent]

        if (made := await self._made(pictures, "decoding its pictures", decoded, failed)) is not None:
            for unit, shown in zip(sent, made, strict=True):
                pictures.decoded(unit, shown)
            self.begin(pictures, wake, failed)

    async def _encode(
        self, pictures: SessionInput, group: Sequence[DecodedPicture], wake: Callable[[], None], failed: Failed
    ) -> None:
        work = partial(self._encoded, pictures, group)
        if (made := await self._made(pictures, "encoding its pictures", work, failed)) is not None:
            pictures.encoded(made)
            wake()
            self.begin(pictures, wake, failed)

    async def _made(self, pictures: SessionInput, what: str, work: Callable[[], T], failed: Failed) -> T | None:
        """What `work` makes in the executor; None where that fails."""
        try:
            return await in_thread(self._executor, work)
        except EngineError as error:
            failed(refusal(error))
        except Exception as error:
            logger.exception("pictures: %s failed", what)
            failed(SessionFailed.of(what, error))
        finally:
            pictures.working = None
        return None

    def _encoded(self, pictures: SessionInput, group: Sequence[DecodedPicture]) -> EncodedInput:
        """In the executor: pictures to the input of the next block."""
        scaled, kept = list[Picture](), list[bytes]()
        for number, picture in enumerate(group):
            is_same = number > 0 and picture is group[number - 1]
            scaled.append(scaled[-1] if is_same else pictures.scaler.picture(picture.frame))
            kept.append(kept[-1] if is_same else write_jpeg(scaled[-1]))
        state = pictures.state or replace(self._state(pictures, scaled[0]), noise=pictures.noise)
        made = self._encoder.encode(pictures.config, _tensor(scaled), state)
        return EncodedInput(
            block=made.inputs[0],
            after=made.after,
            pictures=BlockPictures(tuple(picture.sent.id for picture in group), tuple(kept)),
            due=group[-1].sent.arrived + pictures.period_s,
        )

    def _state(self, pictures: SessionInput, first: Picture) -> InputState:
        """Before a session's first pictures here: in mid-stream behind kept ones, or else one like `first`."""
        if pictures.next_block == 0:
            return self._encoder.start(pictures.config)
        kept = [read_jpeg(data) for block in pictures.kept for data in block.data]
        whole = kept[-(1 + (len(kept) - 1) // 4 * 4) :] if kept else [first]
        return self._encoder.resume(pictures.config, _tensor(whole), pictures.next_block)


def _tensor(pictures: Sequence[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))

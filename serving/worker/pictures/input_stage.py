"""Pictures decoded and encoded ahead of their blocks, in a thread of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from engines.config.video_stream import VideoStreamConfig
from engines.video.input import InputEncoder, InputState, with_lead_in
from serving.background_tasks import BackgroundTasks
from serving.media.clips.shown_frame import Picture
from serving.media.jpeg import read_jpeg, write_jpeg
from serving.pipeline.work_watch import WorkWatch
from serving.replication.messages import BlockPictures
from serving.worker.pictures.fair_queue import FairQueue
from serving.worker.pictures.picture_decoder import SentPicture
from serving.worker.pictures.session_input import EncodedInput, InputPicture, SessionInput

DECODING, ENCODING = "decoding its pictures", "encoding its pictures"

T = TypeVar("T")

Failed = Callable[[str, Exception], None]
"""Is told what failed in doing what."""


class Cuts(Protocol):
    """What says of a session when its video opens anew."""

    @property
    def cuts_next(self) -> bool:
        """Whether it does with the next block."""
        ...

    def reopen(self) -> None:
        """Have it do so."""
        ...


class InputStage:
    """Encodes the pictures of sessions; `executor` has one thread, beside the one that generates.

    They have equal shares of it: one whose pictures take long to be decoded waits for itself.
    """

    def __init__(self, encoder: InputEncoder, executor: Executor) -> None:
        self.encoder = encoder
        self._executor = executor
        self._queue = FairQueue(executor)
        self._watch = WorkWatch("encoding pictures")
        self._background = BackgroundTasks()

    def warm_up(self, streams: Sequence[VideoStreamConfig]) -> None:
        """Encode pictures like those of `streams` in the thread that will; returns when that is done."""
        for stream in streams:
            self._executor.submit(self.encoder.warm_up, stream).result()

    def check(self) -> None:
        """Raise RuntimeError if it encodes nothing any more."""
        self._watch.check()

    def stop(self) -> None:
        """Encode nothing more."""
        self._executor.shutdown()

    def begin(
        self, pictures: SessionInput, cuts: Cuts, wake: Callable[[], None], again: Callable[[], None],
        failed: Failed,
    ) -> None:  # fmt: skip
        """Do what there is to do next for a session, if nothing is being done for it.

        `again` is called once that is done, before it `wake` if a block's input is here, and `failed` where none
        can be made.
        """
        if pictures.working is not None:
            return
        pictures.expect(opens=cuts.cuts_next)
        if (sent := pictures.take_sent()) is not None:
            pictures.working = self._background.start(DECODING, self._decode(pictures, sent, again, failed))
        elif group := pictures.take_pictures():
            if pictures.changes_size(group):
                cuts.reopen()
                pictures.expect(opens=cuts.cuts_next)
            encoding = self._encode(pictures, group, wake, again, failed)
            pictures.working = self._background.start(ENCODING, encoding)

    async def _decode(
        self, pictures: SessionInput, sent: SentPicture, again: Callable[[], None], failed: Failed
    ) -> None:
        def take(made: list[InputPicture]) -> None:
            pictures.decoded(sent, made)
            again()

        await self._work(pictures, DECODING, partial(pictures.decode, sent), take, failed)

    async def _encode(
        self, pictures: SessionInput, group: Sequence[InputPicture], wake: Callable[[], None],
        again: Callable[[], None], failed: Failed,
    ) -> None:  # fmt: skip
        def take(made: EncodedInput) -> None:
            pictures.encoded(group, made)
            wake()
            again()

        work = partial(self._encoded, pictures, group, opens=pictures.opens)
        await self._work(pictures, ENCODING, work, take, failed)

    async def _work(
        self, pictures: SessionInput, what: str, work: Callable[[], T], take: Callable[[T], None], failed: Failed
    ) -> None:
        """Have `work` done in the thread, and `take` what it makes."""
        try:
            try:
                made = await self._queue.run(pictures, partial(self._watch.run, work))
            finally:
                pictures.working = None
            take(made)
        except Exception as error:
            failed(what, error)

    def _encoded(self, pictures: SessionInput, group: Sequence[InputPicture], *, opens: bool) -> EncodedInput:
        """In the executor: pictures to the input of the next block, which `opens` the video anew or does not."""
        scaled, kept = [picture.pixels for picture in group], list[bytes]()
        for number, picture in enumerate(group):
            is_same = number > 0 and picture is group[number - 1]
            kept.append(kept[-1] if is_same else write_jpeg(picture.pixels))
        made = self.encoder.encode(pictures.config, _tensor(scaled), self._state(pictures, scaled[0], opens=opens))
        source = pictures.source.after(group[-1].size, pictures.next_block, opens=opens)
        return EncodedInput(
            block=made.inputs[0],
            after=made.after,
            pictures=BlockPictures(tuple(picture.sent.id for picture in group), tuple(kept), opens, source.size),
            due=group[-1].sent.arrived + pictures.period_s,
            source=source,
        )

    def _state(self, pictures: SessionInput, first: Picture, *, opens: bool) -> InputState:
        """Before the next block's pictures; where it is not known, behind kept ones, or else one like `first`."""
        config, block = pictures.config, pictures.next_block
        if opens or block == 0:
            return self.encoder.start(config, block, pictures.noise)
        if pictures.state is not None:
            return pictures.state
        blocks = since_opening(pictures.kept)
        kept = _tensor([read_jpeg(data) for one in blocks for data in one.data] or [first])
        if blocks and blocks[0].opens:
            kept = with_lead_in(config, kept)
        resumed = self.encoder.resume(config, kept[-(1 + (len(kept) - 1) // 4 * 4) :], block)
        return replace(resumed, noise=pictures.noise)


def since_opening(blocks: Iterable[BlockPictures]) -> list[BlockPictures]:
    """Those from the last one on that opened the video anew."""
    since: list[BlockPictures] = []
    for block in blocks:
        since = [block] if block.opens else [*since, block]
    return since


def _tensor(pictures: Sequence[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))

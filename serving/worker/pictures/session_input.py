"""The pictures of one session on their way to its blocks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from engines.config.video_stream import VideoStreamConfig
from engines.sampling.motion_noise import NoiseSetting
from engines.video.input import BlockInput, InputState, under_noise
from serving.errors import InvalidRequest
from serving.media.chunk import FRAMES_PER_SECOND
from serving.media.clips.picture_scaler import Fit, PictureScaler
from serving.media.clips.shown_frame import Picture, PictureSize
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pipeline.restyling import noise_after
from serving.replication.messages import BlockPictures, SessionSpec
from serving.replication.standby import KEPT_INPUTS
from serving.session.pacing import BeginLimit
from serving.session.types import Applied
from serving.timeline.cue import Cue, Restyling
from serving.worker.pictures.picture_decoder import PictureDecoder, SentPicture
from serving.worker.pictures.sampler import PictureSampler
from serving.worker.pictures.source_size import SourceSize

MOST_SENT = 16
"""Pictures that wait to be decoded; then the oldest are dropped."""

MOST_SENT_BYTES = 16 << 20
"""Of them."""

BLOCKS_WAITING = 2
"""Of decoded pictures; then the oldest are dropped."""

BLOCKS_AHEAD = 2
"""That may begin sooner than their pictures can have been taken: those before may have waited for the network."""


class InputPicture(NamedTuple):
    """A picture that frames can show.

    Args:
        sent: as it came, without its data.
        size: of what was sent, as it is shown.
        pixels: of the session's size.

    """

    sent: SentPicture
    size: PictureSize
    pixels: Picture


class EncodedInput(NamedTuple):
    """The input of a block, made from pictures.

    Args:
        block: the input.
        after: the encoder's state behind it.
        pictures: those that it is made from.
        due: when the block is to be sent.
        source: the pictures with which the video has opened then.

    """

    block: BlockInput
    after: InputState
    pictures: BlockPictures
    due: float
    source: SourceSize


class SessionInput:
    """What has come for one session, and how far it is: `entered` blocks of it have begun.

    Pictures that come faster than they can be restyled are dropped, the oldest first, and counted. `kept` are
    those that the last blocks have begun with, and `noise` is what they are mixed with; of the last block it was
    `last_scale`, which is less where pictures moved. `opens` is whether the
    next block opens the video anew, as far as is known; the one that opened it last is `opening`. Pictures are of
    the client `sender`; `limit` says when the next block may begin, by the clock of who takes them.
    """

    def __init__(
        self, config: VideoStreamConfig, fit: Fit, entered: int, kept: Iterable[BlockPictures] = (),
        noise: NoiseSetting | None = None, opening: int = 0,
    ) -> None:  # fmt: skip
        self.config = config
        self.scaler = PictureScaler(config.height, config.width, fit)
        self.decoder = PictureDecoder()
        self.kept: deque[BlockPictures] = deque(kept, maxlen=KEPT_INPUTS)
        self.source = SourceSize(self.kept[-1].size if self.kept else None, opening)
        self.state: InputState | None = None
        self.noise = noise or NoiseSetting(config.noise_scale, config.motion_noise)
        self.last_scale = 0.0
        self.opens = False
        self.working: asyncio.Task[None] | None = None
        self.received = self.dropped = self.broken = 0
        self.sender = ""
        self.limit = BeginLimit(BLOCKS_AHEAD * self.period_s)
        self._sent: deque[SentPicture] = deque()
        self._decoding: SentPicture | None = None
        self._sampler = PictureSampler()
        self._shown: deque[InputPicture] = deque()
        self._group: Sequence[InputPicture] = ()
        self._begun: Sequence[InputPicture] = ()
        self._is_behind_loss = True
        self._no_more = False
        self._encoded: EncodedInput | None = None
        self._next_block = entered

    # What comes

    def put(self, sent: SentPicture) -> None:
        """A picture has come."""
        self._no_more = False
        self.received += 1
        self._sent.append(sent._replace(is_behind_loss=self._is_behind_loss))
        self._is_behind_loss = False
        while len(self._sent) > MOST_SENT or self._sent_bytes() > MOST_SENT_BYTES:
            self._drop_oldest()

    def refuse(self) -> None:
        """A picture has come that is not wanted."""
        self._no_more = False
        self.received += 1
        self.lost(1)

    def lost(self, pictures: int) -> None:
        """So many did not come, or are not wanted."""
        self.dropped += pictures
        self._is_behind_loss = self._is_behind_loss or pictures > 0

    def end(self) -> None:
        """No more come for now. Holds until one does."""
        self._no_more = True

    def clear(self) -> None:
        """What waits is not wanted any more, nor what is being decoded or encoded."""
        self.dropped += self.waiting
        self._is_behind_loss = self._is_behind_loss or bool(self._sent)
        self._sent.clear()
        self._shown.clear()
        self._decoding, self._group, self._encoded = None, (), None
        self._sampler = PictureSampler()

    def suspend(self) -> None:
        """Let go of what is behind the last block: the next one's pictures are encoded behind kept ones."""
        self.clear()
        self.state = None

    def set_sender(self, sender: str) -> None:
        """What comes now is sent by this client: no block has pictures of two."""
        if self.sender and sender != self.sender:
            self.clear()
            self._is_behind_loss = True
        self.sender = sender

    @property
    def waiting(self) -> int:
        """Pictures that have come, and that no block has begun with."""
        decoding = self._decoding is not None
        return decoding + len(self._sent) + _distinct((*self._group, *self._shown), but=self._begun)

    # What is to be done

    def take_sent(self) -> SentPicture | None:
        """The next that is to be decoded, if one waits. A picture by itself that no frame would show is not."""
        while self._sent:
            sent = self._sent.popleft()
            if sent.format == "h264" or self._sampler.shows(sent.time_us):
                self._decoding = sent
                return sent
        return None

    def decode(self, sent: SentPicture) -> list[InputPicture]:
        """What frames show now that this is here, which `take_sent` gave. May run in another thread."""
        return [
            InputPicture(one.sent._replace(data=b""), one.shown.size, self.scaler.picture(one.shown))
            for one in self.decoder.decode(sent)
            if self._sampler.shows(one.sent.time_us)
        ]

    def decoded(self, sent: SentPicture, pictures: Sequence[InputPicture]) -> None:
        """What became of a picture."""
        if sent is not self._decoding:
            return  # It was cleared away meanwhile.
        self._decoding = None
        self.broken += self.decoder.problem != ""
        for picture in pictures:
            self._shown.extend([picture] * self._sampler.frames_of(picture.sent.time_us))
        most = BLOCKS_WAITING * self.config.blocks.pixel_frames_of(self._next_block)
        while len(self._shown) > most:
            dropped = self._shown.popleft()
            self.dropped += _distinct([dropped], but=(*self._begun, *self._group, *self._shown))

    def take_pictures(self) -> Sequence[InputPicture]:
        """The pictures of the next block, where they are here and the one before has been taken; else none."""
        wanted = self.config.blocks.pixel_frames_of(self._next_block)
        enough = len(self._shown) >= wanted or (self._is_ended and self._shown)
        if self._encoded is not None or not enough:
            return ()
        taken = [self._shown.popleft() for _ in range(min(wanted, len(self._shown)))]
        self._group = taken + [taken[-1]] * (wanted - len(taken))
        return self._group

    def changes_size(self, group: Sequence[InputPicture]) -> bool:
        """Whether the next block is to open the video anew since its pictures are of another size."""
        return self.source.changes((picture.size for picture in group), self._next_block)

    @property
    def next_block(self) -> int:
        """The next block to begin."""
        return self._next_block

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing can be done before more has come, or the next block begins."""
        return self.working is None and not self._sent

    def encoded(self, group: Sequence[InputPicture], made: EncodedInput) -> None:
        """The next block's input is here, made of what `take_pictures` gave."""
        if group is self._group:  # It was not cleared away meanwhile.
            self._encoded = made

    def expect(self, *, opens: bool) -> None:
        """The next block opens the video anew, or does not: what was encoded otherwise is to be encoded again."""
        self.opens = opens
        if self._encoded is not None and self._encoded.pictures.opens != opens:
            self._shown.extendleft(reversed(self._group))
            self._encoded, self._group = None, ()

    @property
    def ready(self) -> EncodedInput | None:
        """The next block's input, once it is here."""
        return self._encoded

    def take(self, now: float, restyling: Restyling | None = None) -> EncodedInput:
        """The next block begins with it, restyled as is told now, if it is."""
        made = self._encoded
        assert made is not None
        self.limit.begun(now, self.period_s)
        if restyling is not None:
            self.noise = noise_after(self.noise, restyling)
            after = made.after.under(self.noise)
            made = made._replace(block=under_noise(made.block, self.config, after), after=after)
        self._encoded, self.state, self.source = None, made.after, made.source
        self.last_scale = made.block.noise_scale
        self._begun, self._group = self._group[-1:], ()
        self._next_block += 1
        self.kept.append(made.pictures)
        return made

    @property
    def period_s(self) -> float:
        """How long a block lasts."""
        return self.config.blocks.pixel_frames_of(1) / FRAMES_PER_SECOND

    @property
    def is_over(self) -> bool:
        """Whether no more pictures come for now, and none waits."""
        return self._is_ended and not (self._shown or self.working or self._encoded)

    @property
    def _is_ended(self) -> bool:
        """Whether no more are to be decoded for now."""
        return self._no_more and not self._sent and self._decoding is None

    @property
    def has_enough(self) -> bool:
        """Whether the pictures of the next block are here, decoded or not, or what is left of them."""
        wanted = self.config.blocks.pixel_frames_of(self._next_block)
        there = len(self._group) + len(self._shown) + len(self._sent) + (self._decoding is not None)
        return there >= wanted or (self._no_more and there > 0)

    def progress(self) -> pb.InputProgress:
        """What has become of what came."""
        return pb.InputProgress(
            received=self.received, dropped=self.dropped, broken=self.broken, noise_scale=self.last_scale
        )

    def restyling(self) -> pb.Restyling:
        """How the next pictures are restyled."""
        return pb.Restyling(noise_scale=self.noise.scale, follows_motion=self.noise.follows_motion)

    def copy(self) -> SessionInput:
        """The same state, for a second session whose pictures are yet to come. The next block has not begun."""
        copied = SessionInput(self.config, self.scaler.fit, self._next_block, self.kept, self.noise)
        copied.state, copied._encoded, copied.source = self.state, self._encoded, self.source
        copied._group = () if self._encoded is None else self._group
        return copied

    def _sent_bytes(self) -> int:
        return sum(len(sent.data) for sent in self._sent)

    def _drop_oldest(self) -> None:
        self._sent.popleft()
        self.dropped += 1
        if self._sent:
            self._sent[0] = self._sent[0]._replace(is_behind_loss=True)
        else:
            self._is_behind_loss = True


def new_input(
    spec: SessionSpec, entered: int = 0, kept: Iterable[BlockPictures] = (), applied: Iterable[Applied] = ()
) -> SessionInput | None:
    """What comes for a session of which `entered` blocks have begun, and in which these cues have applied.

    None for one that takes no pictures.
    """
    stream = spec.stream
    if not isinstance(stream, VideoStreamConfig):
        return None
    noise, opening = NoiseSetting(stream.noise_scale, stream.motion_noise), 0
    for entry in applied:
        if entry.cue.restyling is not None:
            noise = noise_after(noise, entry.cue.restyling)
            opening = entry.block if entry.cue.cuts else opening
    return SessionInput(stream, spec.fit, entered, kept, noise, opening)


def _distinct(pictures: Iterable[InputPicture], but: Iterable[InputPicture]) -> int:
    """How many there are, without others: one may be shown for several frames, in two blocks too."""
    return len({id(picture) for picture in pictures} - {id(picture) for picture in but})


def require_restylable(spec: SessionSpec, cues: Iterable[Cue]) -> None:
    """Raise InvalidRequest for cues that say how pictures are restyled, in a session that takes none."""
    if not isinstance(spec.stream, VideoStreamConfig) and any(cue.restyling is not None for cue in cues):
        raise InvalidRequest("restyling is of sessions that take pictures; open one with INPUT_KIND_VIDEO")


def require_pictures(session_input: SessionInput | None) -> SessionInput:
    """What a session takes. Raises InvalidRequest where it takes no pictures."""
    if session_input is None:
        raise InvalidRequest("the session takes no pictures; open one with `input` INPUT_KIND_VIDEO")
    return session_input

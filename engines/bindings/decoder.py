"""A decoder that is graphs: what a codec's own decoder is to streams, by another runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.bindings.stage_session import StageSession
from engines.config.geometry import SPATIAL_FACTOR
from engines.errors import StreamError
from engines.export.decoders import LATENTS, PICTURES, Codec, DecoderCall, kept_name, past_name
from engines.export.graph import StageGraph
from engines.vae.conv_cache import ConvCache
from engines.vae.protocol import Decoded, check_latents


def call_of(graph: StageGraph) -> DecoderCall:
    """The kind of call that a decoder's graph is."""
    _, frames, _, height, width = graph.input(LATENTS).shape
    return DecoderCall(not graph.state, frames, height * SPATIAL_FACTOR, width * SPATIAL_FACTOR)


class GraphDecoder:
    """Decodes streams as `codec` does, whose graphs `sessions` run, one for each kind of call; it is not kept.

    Latents are taken in any dtype and rounded to the graphs'.
    """

    def __init__(self, sessions: Sequence[StageSession], codec: Codec) -> None:
        self._sessions = {call_of(session.graph): session for session in sessions}
        self._channels = sessions[0].graph.input(LATENTS).shape[2]
        self._receptive_field = codec.decoder_receptive_field
        self._slots = codec.decoder.slots

    @property
    def decoder_receptive_field(self) -> int:
        """Latent frames after which nothing older can be seen in a cache."""
        return self._receptive_field

    def start_decoding(self) -> ConvCache:
        """The cache of a decoder that has seen nothing."""
        return ConvCache(frames_seen=0, frames=(None,) * self._slots)

    def decode(self, latents: Tensor, cache: ConvCache) -> Decoded:
        """As `StreamingDecoder.decode`, of one stream, in as few pieces as there are graphs for.

        Raises StreamError too where no graph is for any piece of it.
        """
        check_latents(latents, self._channels)
        if len(cache.frames) != self._slots:
            raise StreamError(f"a cache of {len(cache.frames)} layers; this decoder has {self._slots}")
        pictures = list[Tensor]()
        while latents.shape[1]:
            session = self._session(latents, first=cache.frames_seen == 0)
            frames = call_of(session.graph).frames
            made, cache = self._piece(session, latents[:, :frames], cache)
            pictures.append(made)
            latents = latents[:, frames:]
        return Decoded(pictures[0] if len(pictures) == 1 else torch.cat(pictures, dim=1), cache)

    def _piece(self, session: StageSession, latents: Tensor, cache: ConvCache) -> Decoded:
        given = {LATENTS: latents.to(session.graph.input(LATENTS).torch_dtype)}
        for slot, past in enumerate(cache.frames if cache.frames_seen else ()):
            spec = session.graph.input(past_name(slot))
            given[spec.name] = latents.new_zeros(spec.shape, dtype=spec.torch_dtype) if past is None else past
        made = session.run(given)
        kept = tuple(made.get(kept_name(slot)) for slot in range(self._slots))
        return Decoded(made[PICTURES], ConvCache(cache.frames_seen + latents.shape[1], kept))

    def _session(self, latents: Tensor, *, first: bool) -> StageSession:
        """That of the longest call with which `latents` can begin."""
        batch, frames, _, rows, columns = latents.shape
        height, width = rows * SPATIAL_FACTOR, columns * SPATIAL_FACTOR
        for length in range(frames if batch == 1 else 0, 0, -1):
            if session := self._sessions.get(DecoderCall(first, length, height, width)):
                return session
        known = ", ".join(f"{call.name} of {call.height}x{call.width}" for call in self._sessions)
        wanted = DecoderCall(first, frames, height, width)
        raise StreamError(f"no graph begins {batch} of {wanted.name} of {height}x{width}; there is one of {known}")

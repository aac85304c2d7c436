"""From latents to pictures, beside whatever else the device does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from engines.device.side_stream import Beside
from engines.vae.conv_cache import History
from engines.vae.protocol import Codec


class Decoding:
    """Decodes the streams of one codec; what a stream's decoder remembers is the caller's `History`."""

    def __init__(self, codec: Codec, beside: Beside) -> None:
        self._codec = codec
        self._beside = beside

    @property
    def memory(self) -> int:
        """Latent frames after which nothing older can be seen in a history."""
        return self._codec.decoder_memory

    def start(self) -> History:
        """The history of a decoder that has seen nothing."""
        return self._codec.start_decoding()

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, history: History, ready: torch.cuda.Event | None = None
    ) -> tuple[Tensor, History]:
        """Pictures [frames, height, width, 3] uint8 on the CPU, and the history after them.

        `latents` are [frames, channels, h/8, w/8]; on CUDA they are there at `ready`, and this waits for the
        pictures to arrive.
        """
        return self._beside.run(partial(_decode, self._codec, latents, history), ready)

    @torch.inference_mode()
    def warmed(self, blocks: Sequence[Tensor]) -> History:
        """The history after latents [frames, channels, h/8, w/8] of `blocks`, from nothing."""
        # Memory that the decoder's queue has taken is of no use to the other, so all decoding is done there.
        return self._beside.run(partial(_warmed, self._codec, blocks), None)


def _decode(codec: Codec, latents: Tensor, history: History) -> tuple[Tensor, History]:
    decoded = codec.decode(latents.unsqueeze(0), history)
    pictures = decoded.frames[0].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    # Copied from this queue: in the caller's they would wait for the passes that it has been given meanwhile.
    return pictures.to("cpu", non_blocking=True), decoded.history


def _warmed(codec: Codec, blocks: Sequence[Tensor]) -> History:
    history = codec.start_decoding()
    for latents in blocks:
        history = codec.decode(latents.unsqueeze(0), history).history
    return history

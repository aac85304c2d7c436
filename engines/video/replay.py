"""A video stream's kept inputs played through its loop: its windows are rebuilt, nearly as they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.errors import StreamError
from engines.video.generator import VideoGenerator
from engines.video.kept_inputs import KeptInput, KeptInputs
from engines.video.stream import VideoStream


def replay(video: VideoGenerator, stream: VideoStream, inputs: KeptInputs, on_their_way: int) -> None:
    """Play `inputs` through an empty stream; the last blocks, `on_their_way`, stay between two steps.

    Block numbers, and with them the noise, are those of the inputs. What the stream counts, its position, its
    prompt and its recent latents are left as playing leaves them. Raises as `VideoGenerator.generate`.
    """
    order = inputs.to_play()
    settled = len(order) - on_their_way
    _play(video, stream, order[:settled])
    if on_their_way < stream.steps - 1 and not stream.is_empty:
        video.flush(stream)
    _play(video, stream, order[settled:])


@torch.inference_mode()
def resume(video: VideoGenerator, stream: VideoStream) -> None:
    """Have a suspended stream go on: its kept inputs are played into new windows, as one more of `rebuilt_before`.

    Raises StreamError if it is not suspended, PoolFull if it finds no room, and as `VideoGenerator.generate`; it
    is suspended then.
    """
    stream.require_open()
    if not stream.is_suspended:
        raise StreamError(f"the stream is not suspended: it can begin block {stream.entered}")
    windows = video.open(stream.config, stream.noise, stream.opening)
    try:
        windows.loop = stream.loop
        replay(video, windows, stream.inputs, stream.on_their_way)
        if stream.prompt is not None:
            video.set_prompt(windows, stream.prompt)
        if stream.renewing:
            video.renew_sink(windows)
        begun = stream.entered > stream.opening
        stream.resume(windows, video.beside.rebuilt_decoder(stream.recent) if begun else windows.decoder)
    except BaseException:
        video.close(windows)
        raise


def _play(video: VideoGenerator, stream: VideoStream, inputs: Sequence[KeptInput]) -> None:
    for kept in inputs:
        if kept.renews:
            video.renew_sink(stream)
        if kept.prompt is not stream.prompt:
            video.set_prompt(stream, kept.prompt)
        stream.entered, stream.position = kept.number, kept.position
        video.generate([stream], [kept.input])

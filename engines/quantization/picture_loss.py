"""What rounding costs a model's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from engines.bindings.decoder import GraphDecoder
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.stage_session import StageSession
from engines.config.stream import StreamConfig
from engines.export.decoders import Codec
from engines.export.quantized_convs import PictureLoss, Ranges
from engines.loading.stage_graphs import decoder_exports, with_int8_convs
from engines.vae.protocol import StreamingDecoder

CPU = torch.device("cpu")

LEVELS = 255

MOST_DB = 100.0
"""Stands for pictures that are the same."""


def int8_conv_loss(
    codec: Codec,
    stream: StreamConfig,
    ranges: Ranges,
    streams: Sequence[Tensor],
    made: Callable[[int], None] = lambda _: None,
) -> PictureLoss:
    """By onnxruntime, the rest in fp32.

    Args:
        codec: not fused, in fp32 on the CPU; it is left as it is.
        stream: the blocks of `streams` and the size of their pictures.
        ranges: of what convolutions read, as `conv_ranges` finds them.
        streams: latents [1, frames, channels, height/8, width/8] of whole blocks from the streams' beginnings.
        made: told how many streams are done, after each.

    Raises:
        ConfigError: a range is not known, or the packages for it are not installed.

    """
    found = list[float]()
    with TemporaryDirectory() as folder:
        decoder = _int8_decoder(codec, stream, ranges, Path(folder))
        for number, latents in enumerate(streams):
            first, later = stream.blocks.first, latents.shape[1] - stream.blocks.first
            blocks = latents.float().split([first, *[stream.blocks.later] * (later // stream.blocks.later)], dim=1)
            pairs = zip(_pictures(decoder, blocks), _pictures(codec, blocks), strict=True)
            found += [psnr(block, wanted) for block, wanted in pairs]
            made(number + 1)
    return PictureLoss(len(found), round(float(np.median(found)), 2), round(min(found), 2))


def _int8_decoder(codec: Codec, stream: StreamConfig, ranges: Ranges, folder: Path) -> GraphDecoder:
    exports = [with_int8_convs(export, ranges) for export in decoder_exports(codec, [stream], torch.float32)]
    graphs = [export.write(folder / export.name) for export in exports]
    sessions = [StageSession(OnnxRuntime(graph, graph.path, torch.get_num_threads()), CPU) for graph in graphs]
    return GraphDecoder(sessions, codec)


@torch.inference_mode()
def _pictures(codec: StreamingDecoder, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Of every block, as viewers get them."""
    cache, pictures = codec.start_decoding(), list[Tensor]()
    for block in blocks:
        frames, cache = codec.decode(block, cache)
        pictures.append((frames.clamp(0, 1) * LEVELS).round())
    return pictures


def psnr(pictures: Tensor, wanted: Tensor) -> float:
    """Of pictures in 0..255, in dB."""
    error = float((pictures.double() - wanted.double()).square().mean()) / LEVELS**2
    return MOST_DB if error == 0 else min(MOST_DB, -10 * float(np.log10(error)))

"""What the convolutions of a decoder read, watched while it decodes streams by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from typing_extensions import override

from engines.bindings.decoder import GraphDecoder
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.stage_session import StageSession
from engines.config.geometry import SPATIAL_FACTOR
from engines.config.validation import require
from engines.export.decoders import Codec, DecoderCall, export_decoder
from engines.export.graph import StageGraph
from engines.export.quantized_convs import Ranges, range_name, watch_convs

CPU = torch.device("cpu")


def conv_ranges(codec: Codec, streams: Sequence[Tensor], made: Callable[[int], None] = lambda _: None) -> Ranges:
    """Ranges of what every convolution of a decoder reads, over all of `streams`, frame by frame and in fp32.

    Args:
        codec: not fused; it is left as it is.
        streams: latents [1, frames, channels, height/8, width/8] from the streams' beginnings, of one size.
        made: told how many streams are done, after each.

    Raises:
        ConfigError: there are no streams, or the packages for it are not installed.

    """
    require(len(streams) > 0, "there are no streams to watch convolutions with")
    height, width = (side * SPATIAL_FACTOR for side in streams[0].shape[-2:])
    calls = [DecoderCall(first, 1, height, width) for first in (True, False)]
    with TemporaryDirectory() as folder:
        sessions = [_RangeWatch(_watched(codec, call, folder)) for call in calls]
        decoder = GraphDecoder(sessions, codec)
        for number, latents in enumerate(streams):
            decoder.decode(latents.float(), decoder.start_decoding())
            made(number + 1)
    names = set[str]().union(*(session.ranges for session in sessions))
    return {name: max(session.ranges.get(name, 0.0) for session in sessions) for name in names}


def _watched(codec: Codec, call: DecoderCall, folder: str) -> StageGraph:
    graph = export_decoder(codec, call, Path(folder) / call.name, "", torch.float32)
    return watch_convs(graph, Path(folder) / f"{call.name}-watched")


class _RangeWatch(StageSession):
    """Keeps the largest of each range, by the name of the convolution's weight."""

    def __init__(self, graph: StageGraph) -> None:
        super().__init__(OnnxRuntime(graph, graph.path, torch.get_num_threads()), CPU)
        prefix = range_name("")
        names = [spec.name for spec in graph.outputs if spec.name.startswith(prefix)]
        self._weights = {name: name.removeprefix(prefix) for name in names}
        self.ranges: dict[str, float] = dict.fromkeys(self._weights.values(), 0.0)

    @override
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = super().run(inputs)
        for name, weight in self._weights.items():
            self.ranges[weight] = max(self.ranges[weight], float(made[name]))
        return made

"""Times a decoder's block in PyTorch and by graphs of it: onnxruntime's on a CPU, TensorRT's on a card.

    python -m benchmarks.decoders --codecs pocket TAEHV --sizes 96x160 --json FILE

A block is three latent frames, twelve pictures, in the middle of a stream. The pocket model's weights are its own,
others random. On CUDA PyTorch runs in bf16 as it is, on fused operations and by torch.compile, plans in fp16, and
in fp16 with INT8 convolutions; all are held against PyTorch in fp32. On a CPU it is also said how far pictures in
bf16 are from those, and how far they would be if doublings repeated pixels and then convolved them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.sizes import SEED, frame_size, resized
from benchmarks.measure.stage_engines import (
    LIBRARIES,
    Call,
    Engine,
    EngineRow,
    Subject,
    add_arguments,
    by_onnxruntime,
    by_plans,
    chosen_device,
    measure_stage,
    report,
)
from engines.bindings.decoder import GraphDecoder
from engines.bindings.stage_session import StageSession
from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1, preset
from engines.export.graph import StageGraph
from engines.export.quantized_convs import quantize_convs
from engines.loading.model import Autoencoder, Model
from engines.loading.stage_graphs import CPU_DTYPES, PLAN_DTYPES, stage_exports
from engines.quantization.conv_ranges import conv_ranges
from engines.quantization.picture_loss import psnr
from engines.vae.doubling_conv import DoublingConv
from engines.vae.protocol import StreamingDecoder

CODECS = ("pocket", "TAEHV", "Wan VAE")
BLOCK, PICTURES = 3, 12
WATCHED = 8
"""Rows and columns of latents with which convolutions are watched that are to be in INT8."""


@dataclass(frozen=True)
class Rounding:
    """PSNR, in dB, of a block in bf16 against fp32: by transposed convolutions, and by repeated pixels."""

    codec: str
    as_it_is: float
    by_repeated_pixels: float

    @override
    def __str__(self) -> str:
        return f"{self.codec} in bf16: {self.as_it_is} dB; by repeated pixels {self.by_repeated_pixels} dB"


@dataclass(frozen=True)
class Codec:
    """A codec in fp32 on the CPU, and latents of two blocks at one size of the pictures."""

    name: str
    config: ModelConfig
    model: Model
    latents: Tensor

    @classmethod
    def of(cls, name: str, size: tuple[int, int]) -> Codec:
        """By its name."""
        if name == "pocket":
            # Reading its file takes libraries that random weights do without.
            from serving.weights.loader import open_model

            opened = open_model("pocket", Path(), torch.device("cpu"), torch.float32, networks=["codec"])
            model, config = opened.model, resized(opened.model.config, size)
        else:
            # The transformer's weights are drawn too, though of no use here: it had better be small.
            vae = TAEW2_1 if name == "TAEHV" else preset("longlive-1.3b").vae
            config = resized(replace(preset("tiny"), vae=vae), size)
            model = Model.random(config, SEED, networks=["codec"])
        generator = torch.Generator().manual_seed(SEED)
        shape = config.stream.latent_shape(config.vae.latent_channels, 2 * BLOCK)
        return cls(name, config, model, torch.randn(1, *shape, generator=generator))

    def moved(self, device: torch.device, dtype: torch.dtype) -> Autoencoder:
        """By itself."""
        moved = copy.deepcopy(self.model.vae).to(device, dtype)
        moved.prepare()
        return moved

    def graphs(self, dtype: torch.dtype, folder: Path) -> list[StageGraph]:
        """Of whole blocks. Raises ConfigError where packages for it are not installed."""
        exports = stage_exports(self.model, "decoder", self.config.stream, dtype)
        return [each.write(folder / each.name) for each in exports if each.name.endswith(f"-{BLOCK}")]

    def int8_graphs(self, graphs: list[StageGraph], folder: Path) -> list[StageGraph]:
        """The same with their convolutions in INT8."""
        ranges = conv_ranges(self.model.vae, [self.latents[:, :2, :, :WATCHED, :WATCHED]])
        return [quantize_convs(graph, ranges, folder / f"{graph.name}-int8") for graph in graphs]

    def subject(self, device: torch.device) -> Subject:
        """What is measured."""
        exact = self._second_block(self.moved(device, torch.float32), device)()
        stream = self.config.stream
        return Subject(self.name, f"{PICTURES} pictures of {stream.height}x{stream.width}", exact)

    def on_cpu(self, folder: Path) -> Iterator[Engine]:
        """In fp32."""
        cpu = torch.device("cpu")
        yield Engine("PyTorch", lambda: self._second_block(self.model.vae, cpu))
        graphs = cache(partial(self.graphs, CPU_DTYPES["decoder"], folder))
        yield Engine("onnxruntime", partial(self._planned, lambda: by_onnxruntime(graphs()), cpu))
        yield Engine(
            "onnxruntime, INT8 convolutions",
            partial(self._planned, lambda: by_onnxruntime(self.int8_graphs(graphs(), folder)), cpu),
        )

    def on_card(self, device: torch.device, folder: Path) -> Iterator[Engine]:
        """In 16 bits."""
        low = partial(self.moved, device, torch.bfloat16)
        for name, change in (("PyTorch", _same), ("fused", _fused), ("torch.compile", _compiled)):
            yield Engine(name, partial(self._changed, low, change, device))
        graphs = cache(partial(self.graphs, PLAN_DTYPES["decoder"], folder))
        int8_graphs = cache(lambda: self.int8_graphs(graphs(), folder))
        for library in LIBRARIES:
            for name, wanted in ((library, graphs), (f"{library}, INT8 convolutions", int8_graphs)):
                sessions = partial(by_plans, wanted, library, device)
                yield Engine(name, partial(self._planned, sessions, device))

    def rounding(self) -> Rounding | None:
        """Of the second block of a stream; None where no pictures are doubled."""
        cpu = torch.device("cpu")
        low = self.moved(cpu, torch.bfloat16)
        doublings = [layer for layer in low.modules() if isinstance(layer, DoublingConv)]
        if not doublings:
            return None
        exact, by_sums = (255 * self._second_block(codec, cpu)() for codec in (self.model.vae, low))
        for layer in doublings:
            layer.enlarge = partial(_of_repeated_pixels, layer)  # type: ignore[method-assign]
        by_pixels = 255 * self._second_block(low, cpu)()
        return Rounding(self.name, round(psnr(by_sums, exact), 2), round(psnr(by_pixels, exact), 2))

    def _changed(
        self, make: Callable[[], Autoencoder], change: Callable[[Autoencoder], Autoencoder], device: torch.device
    ) -> Call:
        return self._second_block(change(make()), device)

    def _planned(self, sessions: Callable[[], list[StageSession]], device: torch.device) -> Call:
        return self._second_block(GraphDecoder(sessions(), self.model.vae), device)

    @torch.inference_mode()
    def _second_block(self, decoder: StreamingDecoder, device: torch.device) -> Call:
        """Decodes it as often as it is called."""
        dtype = next(decoder.parameters()).dtype if isinstance(decoder, torch.nn.Module) else torch.float32
        first, second = self.latents.to(device, dtype).split(BLOCK, dim=1)
        begun = decoder.decode(first, decoder.start_decoding()).cache
        return torch.inference_mode()(lambda: decoder.decode(second, begun).frames)


def _same(codec: Autoencoder) -> Autoencoder:
    return codec


def _fused(codec: Autoencoder) -> Autoencoder:
    from kernels.vae.fused import FUSED

    codec.fuse(FUSED)
    return codec


def _compiled(codec: Autoencoder) -> Autoencoder:
    codec.decoder.forward = torch.compile(codec.decoder.forward)  # type: ignore[method-assign]
    return codec


def _of_repeated_pixels(layer: DoublingConv, x: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0), layer.weight, bias, padding=1)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 if an engine that is here failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoders")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=["pocket", "TAEHV"])
    parser.add_argument("--sizes", nargs="+", type=frame_size, default=[(96, 160)], metavar="HxW")
    add_arguments(parser, "blocks")
    options = parser.parse_args(arguments)
    device = chosen_device(parser, options)
    roundings = list[dict[str, Any]]()

    def rows() -> Iterator[EngineRow]:
        for size in options.sizes:
            for name in options.codecs:
                codec = Codec.of(name, size)
                yield from measure_stage(codec, device, options.runs)
                if device.type == "cpu" and (rounding := codec.rounding()) is not None:
                    roundings.append(asdict(rounding))

    failed = report(rows(), device, options.json, bf16=roundings)
    print(*(Rounding(**each) for each in roundings), sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())

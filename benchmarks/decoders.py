"""Times a decoder's block in PyTorch and by graphs of it: onnxruntime's on a CPU, TensorRT's on a card.

    python -m benchmarks.decoders --codecs pocket TAEHV --sizes 96x160 --json FILE

A block is three latent frames, twelve pictures, in the middle of a stream. The pocket model's weights are its own,
others random. On CUDA PyTorch runs in bf16 as it is, on fused operations and by torch.compile, plans in fp16; all
are held against PyTorch in fp32. A library that makes no plan for the card is named with what it says.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.machine import Machine
from benchmarks.measure.sizes import SEED, frame_size, resized
from benchmarks.measure.timing import sample
from engines.bindings.decoder import GraphDecoder
from engines.bindings.onnx_runtime import OnnxRuntime
from engines.bindings.stage_session import StageSession
from engines.bindings.tensorrt_runtime import TensorRTRuntime
from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1, preset
from engines.errors import PlanError
from engines.export.graph import StageGraph
from engines.loading.model import Autoencoder, Model
from engines.loading.stage_graphs import CPU_DTYPES, PLAN_DTYPES, stage_exports
from engines.plans.libraries import LibraryName, plan_builder, plan_module
from engines.plans.tensorrt_builder import Card
from engines.vae.protocol import StreamingDecoder, StreamingVAE
from serving.media.whole_file import write_whole
from serving.weights.loader import open_model

CODECS = ("pocket", "TAEHV", "Wan VAE")
BLOCK, PICTURES = 3, 12
LIBRARIES: tuple[LibraryName, ...] = ("tensorrt-rtx", "tensorrt")

COLUMNS = """\
| codec | size | decoder | ms | pictures/s | largest difference | peak MB |
|---|---|---|---:|---:|---:|---:|"""


@dataclass(frozen=True)
class Row:
    """A decoder's block: its median time, and how far its pictures in 0..1 are from PyTorch's in fp32.

    `peak_bytes` are those of the card. Where there is no such decoder, `refused` says why.
    """

    codec: str
    size: tuple[int, int]
    decoder: str
    ms: float = 0.0
    difference: float = 0.0
    peak_bytes: int | None = None
    refused: str = ""

    @override
    def __str__(self) -> str:
        head = f"| {self.codec} | {self.size[0]}x{self.size[1]} | {self.decoder} |"
        if self.refused:
            return f"{head} {self.refused} ||||"
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:,.0f}"
        return f"{head} {self.ms:.1f} | {PICTURES * 1e3 / self.ms:.1f} | {self.difference:.1e} | {peak} |"


class Subject(NamedTuple):
    """A codec at one size of its pictures."""

    name: str
    config: ModelConfig
    model: Model
    latents: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.config.stream.height, self.config.stream.width

    @classmethod
    def of(cls, name: str, size: tuple[int, int]) -> Subject:
        """In fp32 on the CPU."""
        if name == "pocket":
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


def decoders(
    subject: Subject, device: torch.device, folder: Path
) -> Iterator[tuple[str, Callable[[], StreamingDecoder]]]:
    """Names of all that may decode on `device`, and what makes each; that raises PlanError where it cannot be."""
    vae = subject.model.vae
    if device.type == "cpu":
        yield "PyTorch", lambda: vae
        yield "onnxruntime", partial(_by_onnxruntime, vae, _graphs(subject, CPU_DTYPES["decoder"], folder))
        return
    low = partial(_moved, subject, device, torch.bfloat16)
    yield "PyTorch", low
    yield "fused", lambda: _fused(low())
    yield "torch.compile", lambda: _compiled(low())
    graphs = _graphs(subject, PLAN_DTYPES["decoder"], folder)
    for library in LIBRARIES:
        yield library, partial(_by_plan, vae, graphs, library, device)


def measure(subject: Subject, device: torch.device, runs: int) -> Iterator[Row]:
    """All decoders of a subject."""
    exact = _block(_moved(subject, device, torch.float32), subject.latents.to(device))()
    with tempfile.TemporaryDirectory() as folder:
        for name, make in decoders(subject, device, Path(folder)):
            try:
                decoder = make()
            except PlanError as error:
                yield Row(subject.name, subject.size, name, refused=str(error))
                continue
            yield _timed(subject, name, decoder, exact, device, runs)


@torch.inference_mode()
def _timed(
    subject: Subject, name: str, decoder: StreamingDecoder, exact: Tensor, device: torch.device, runs: int
) -> Row:
    on_card = device.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    block = _block(decoder, subject.latents.to(device))
    times, made = sample(lambda _: block(), runs, device)
    peak = torch.cuda.max_memory_allocated(device) if on_card else None
    difference = float((made - exact).abs().max())
    return Row(subject.name, subject.size, name, round(times.median_ms, 2), difference, peak)


@torch.inference_mode()
def _block(decoder: StreamingDecoder, latents: Tensor) -> Callable[[], Tensor]:
    """Decodes the second block of a stream, as often as it is called."""
    dtype = next(decoder.parameters()).dtype if isinstance(decoder, torch.nn.Module) else latents.dtype
    first, second = latents.to(dtype).split(BLOCK, dim=1)
    cache = decoder.decode(first, decoder.start_decoding()).cache
    return torch.inference_mode()(lambda: decoder.decode(second, cache).frames)


def _moved(subject: Subject, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The codec, by itself."""
    moved = copy.deepcopy(subject.model.vae).to(device, dtype)
    moved.prepare()
    return moved


def _fused(codec: StreamingVAE) -> StreamingVAE:
    from kernels.vae.fused import FUSED

    codec.fuse(FUSED)
    return codec


def _compiled(codec: Autoencoder) -> Autoencoder:
    codec.decoder.forward = torch.compile(codec.decoder.forward)  # type: ignore[method-assign]
    return codec


def _graphs(subject: Subject, dtype: torch.dtype, folder: Path) -> list[StageGraph]:
    """Of whole blocks."""
    exports = stage_exports(subject.model, "decoder", subject.config.stream, dtype)
    return [each.write(folder / each.name) for each in exports if each.name.endswith(f"-{BLOCK}")]


def _by_onnxruntime(vae: Autoencoder, graphs: Sequence[StageGraph]) -> GraphDecoder:
    device, threads = torch.device("cpu"), torch.get_num_threads()
    sessions = [StageSession(OnnxRuntime(graph, graph.path, threads), device) for graph in graphs]
    return GraphDecoder(sessions, vae.decoder_receptive_field, vae.decoder.slots)


def _by_plan(
    vae: Autoencoder, graphs: Sequence[StageGraph], library: LibraryName, device: torch.device
) -> GraphDecoder:
    """Raises PlanError where `library` makes no plans for the card."""
    builder, module = plan_builder(library), plan_module(library)
    target = builder.target([Card.here().capability])
    sessions = []
    for graph in graphs:
        built = builder.build(graph, target, b"", lambda step: True)
        sessions.append(StageSession(TensorRTRuntime(module, graph, bytes(built.data), device), device))
    return GraphDecoder(sessions, vae.decoder_receptive_field, vae.decoder.slots)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoders")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=["pocket", "TAEHV"])
    parser.add_argument("--sizes", nargs="+", type=frame_size, default=[(96, 160)], metavar="HxW")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1, as in a server)")
    parser.add_argument("--runs", type=int, default=20, help="blocks that are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    torch.set_num_threads(options.threads)
    device, rows = torch.device(options.device), list[Row]()
    print(COLUMNS)
    for size in options.sizes:
        for name in options.codecs:
            for row in measure(Subject.of(name, size), device, options.runs):
                rows.append(row)
                print(row, flush=True)
    if options.json is not None:
        document = {"machine": asdict(Machine.here(device)), "rows": [asdict(row) for row in rows]}
        write_whole(options.json, json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

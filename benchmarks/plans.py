"""Builds TensorRT-RTX plans of stages at true width, for several kinds of card, and tells what the builder says.

    python -m benchmarks.plans [--size 480x832] [--only TAEHV]

needs the extra `plans` and no card: TensorRT runs nothing, and no time here is a card's. Weights are random and
distinct: equal ones would be stored once. Every plan is built in a process of its own; what that takes of the
host's memory is the peak of its resident pages beyond those it began with.

What INT8 convolutions cost is seen on the pocket model's decoder, whose weights are real, by onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from typing_extensions import override

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.sizes import SEED, frame_size, resized
from benchmarks.quantization.convs import SHOWN_STREAMS, PocketStreams, in_one_piece
from engines.config.model import ModelConfig
from engines.config.presets import TAEW2_1, preset
from engines.errors import PlanError
from engines.export.graph import Stage, StageGraph
from engines.export.quantized_convs import int8_name, quantize_convs
from engines.loading.model import Model
from engines.loading.stage_graphs import PLAN_DTYPES, STAGE_NETWORKS, stage_exports
from engines.plans.builder import PlanBuilder
from engines.plans.libraries import plan_builder
from engines.quantization.conv_ranges import conv_ranges
from serving.media.whole_file import write_whole

CARDS = ("sm_80", "sm_86", "sm_89", "sm_120")
TARGETS = (*CARDS, ",".join(CARDS))
"""Each kind of card, and all of them in one plan."""

HOPPER = "sm_90"
"""For which there are none."""

TEXT_LAYERS, LAYERS = 1, 2
SIZE = (480, 832)
IN_INT8 = "decoder-steady-3"
"""The graph that is built with INT8 convolutions too."""

WATCHED_BLOCKS = 2
"""Of one stream of the pocket model, for the ranges of decoders with random weights."""

PEAK, RESIDENT = "VmHWM", "VmRSS"

COLUMNS = """\
| stage | graph | cards | layers | activations MB | plan MB | seconds | host MB |
|---|---|---|---:|---:|---:|---:|---:|"""

NOT_KNOWN = (
    "No plan was run: there was no card. Whether INT8 convolutions run on INT8 tensor cores and how fast any plan "
    "is are not known here; how far pictures in 16 bits are from PyTorch's is compared on a card only."
)


@dataclass(frozen=True)
class Subject:
    """A stage of a model."""

    name: str
    stage: Stage
    model: ModelConfig


def subjects(size: tuple[int, int]) -> list[Subject]:
    """Of LongLive 1.3B, with the widths of all of its layers and fewer of them where all are alike."""
    longlive = resized(preset("longlive-1.3b"), size)
    model = replace(
        longlive,
        transformer=replace(longlive.transformer, layers=LAYERS),
        # The table of embeddings is not part of the graph.
        text_encoder=replace(longlive.text_encoder, layers=TEXT_LAYERS, vocab=16),
    )
    return [
        Subject("TAEHV", "decoder", replace(model, vae=TAEW2_1)),
        Subject("Wan VAE", "decoder", model),
        Subject(f"UMT5, {TEXT_LAYERS} of {longlive.text_encoder.layers} layers", "text", model),
        Subject(f"denoiser, {LAYERS} of {longlive.transformer.layers} layers", "denoiser", model),
    ]


@dataclass(frozen=True)
class Built:
    """What a builder says of a plan.

    `seconds` are those of parsing and building, `host_bytes` the most that they took of this machine's memory.
    """

    subject: str
    graph: str
    recipe: str
    cards: str
    layers: int
    activation_bytes: int | None
    plan_bytes: int
    seconds: float
    host_bytes: int

    @classmethod
    def here(cls, builder: PlanBuilder, subject: str, graph: StageGraph, cards: str) -> Self:
        """Build it in this process."""
        target = builder.target(cards.split(","))
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        before = _status(RESIDENT)
        built = builder.build(graph, target, b"", lambda step: True)
        return cls(
            subject, graph.name, graph.recipe, cards, built.layers, built.activation_bytes, built.data.nbytes,
            round(built.seconds, 2), _status(PEAK) - before,
        )  # fmt: skip

    @override
    def __str__(self) -> str:
        activations = "unknown" if self.activation_bytes is None else _megabytes(self.activation_bytes)
        return (
            f"| {self.subject} | {self.graph} | {self.cards.replace(',', ', ')} | {self.layers} | {activations} "
            f"| {_megabytes(self.plan_bytes)} | {self.seconds:.2f} | {_megabytes(self.host_bytes)} |"
        )


def _status(field: str) -> int:
    """Bytes, as Linux tells them of this process."""
    found = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[0]) * 1024


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def export(subject: Subject, streams: PocketStreams, folder: Path) -> list[StageGraph]:
    """All graphs of a subject; one of a decoder's with its convolutions in INT8 too."""
    model = Model.random(subject.model, SEED, networks=[STAGE_NETWORKS[subject.stage]])
    exports = stage_exports(model, subject.stage, subject.model.stream, PLAN_DTYPES[subject.stage])
    graphs = [each.write(folder / each.name) for each in exports]
    if subject.stage == "decoder":
        ranges = conv_ranges(model.vae, in_one_piece(streams.watched[:WATCHED_BLOCKS], streams=1))
        whole = next(graph for graph in graphs if graph.name == IN_INT8)
        graphs.append(quantize_convs(whole, ranges, folder / "int8"))
    return graphs


def build_apart(subject: Subject, graph: StageGraph, cards: str) -> Built:
    """In a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--build", str(graph.folder), cards, subject.name]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Built(**json.loads(answer.stdout))


def measure(subject: Subject, streams: PocketStreams) -> list[Built]:
    """Plans of all its graphs for all cards."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for graph in export(subject, streams, Path(folder)):
            for cards in TARGETS:
                rows.append(build_apart(subject, graph, cards))
                print(rows[-1], flush=True)
    return rows


def refusal(builder: PlanBuilder) -> str:
    """What is said to those who ask for plans for Hopper."""
    try:
        builder.target([HOPPER])
    except PlanError as error:
        return str(error)
    raise AssertionError(f"{builder.library} builds for {HOPPER} now: add it to the cards")


def as_text(document: dict[str, Any], rows: Sequence[Built]) -> str:
    """To read."""
    loss = document["int8_convolutions"]
    height, width = document["size"]
    transformer, tokens = preset("longlive-1.3b").transformer, 3 * (height // 16) * (width // 16)
    scores = transformer.heads * tokens * 4 * tokens * 2
    return f"""\
# Plans, built without a card

{document["library"]} on {document["machine"]["processor"]}, by `make plans`: pictures of {height}x{width},
random weights of true width.

{document["not_known"]}

Decoders compute in fp16 with norms in fp32, the others in bf16 with norms in fp32. All scores of one layer of the
denoiser's attention at once would take {_megabytes(scores)} MB; {_said_of_scores(rows, scores)}.
For {HOPPER}: {document["hopper"]}.

{COLUMNS}
{chr(10).join(map(str, rows))}

INT8 convolutions, {loss["convolutions"]} of the pocket model's decoder with the rest in fp32, by onnxruntime over
{document["shown_streams"]} streams that they were not watched with: PSNR of a block's pictures against PyTorch's
in fp32 {loss["median_psnr_db"]} dB in the median, {loss["worst_psnr_db"]} dB in the worst block. Of decoders with
random weights nothing can be said. {_said_of_int8(rows)}
"""


def _said_of_scores(rows: Sequence[Built], scores: int) -> str:
    """What follows from the activations of the denoiser."""
    taken = [row.activation_bytes for row in rows if row.subject.startswith("denoiser")]
    known = [nbytes for nbytes in taken if nbytes is not None]
    if len(known) < len(taken) or not known:
        return "what its activations take is not known"
    most = f"its activations take {_megabytes(max(known))} MB at most"
    return f"{most}, so they are never there" if max(known) < scores else f"{most}, so they may be there"


def _said_of_int8(rows: Sequence[Built]) -> str:
    """What follows from the activations of the same graphs with convolutions in INT8, and without."""
    taken = {(row.subject, row.graph, row.cards): row.activation_bytes for row in rows}
    pairs = [
        (taken[subject, IN_INT8, cards], nbytes)
        for (subject, graph, cards), nbytes in taken.items() if graph == int8_name(IN_INT8)
    ]  # fmt: skip
    known = [(plain, rounded) for plain, rounded in pairs if plain is not None and rounded is not None]
    if not known:
        return "What their activations take in INT8 is not known."
    ratios = sorted(rounded / plain for plain, rounded in known)
    return f"Activations take {ratios[0]:.2f} to {ratios[-1]:.2f} times as much in INT8; by INT8 kernels half."


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, build, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans")
    parser.add_argument("--size", type=frame_size, default=SIZE, metavar="HxW", help="of the pictures")
    parser.add_argument("--only", metavar="STAGE", help="build those whose name begins so, and write nothing")
    parser.add_argument("--output", type=Path, default=RESULTS / "plans", help="without its ending")
    parser.add_argument("--build", nargs=3, metavar=("FOLDER", "CARDS", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    builder = plan_builder("tensorrt-rtx")
    if options.build is not None:
        folder, cards, subject = options.build
        print(json.dumps(asdict(Built.here(builder, subject, StageGraph.load(Path(folder)), cards))))
        return
    streams, rows = PocketStreams(), list[Built]()
    print(f"{NOT_KNOWN}\n{COLUMNS}")
    for subject in subjects(options.size):
        if options.only is None or subject.name.startswith(options.only):
            rows += measure(subject, streams)
    if options.only is None:
        document = {
            "machine": asdict(Machine.here(torch.device("cpu"))),
            "library": str(builder.library),
            "size": options.size,
            "not_known": NOT_KNOWN,
            "hopper": refusal(builder),
            "plans": [asdict(row) for row in rows],
            "shown_streams": SHOWN_STREAMS,
            "int8_convolutions": streams.loss(),
        }
        write_whole(options.output.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
        write_whole(options.output.with_suffix(".md"), as_text(document, rows))
        print(options.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()

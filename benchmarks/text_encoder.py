"""Times a text encoder in PyTorch and by graphs of it: onnxruntime's on a CPU, TensorRT's on a card.

    python -m benchmarks.text_encoder --encoder UMT5 --layers 4 --lengths 128 512 --device cuda

UMT5-XXL has layers that are all alike: some of them, of true width and with random weights, tell what each takes.
The embedding outside of graphs counts. On CUDA PyTorch runs in bf16 as it is and by torch.compile, plans in bf16;
all are held against PyTorch in fp32.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure.sizes import SEED
from benchmarks.measure.stage_engines import (
    LIBRARIES,
    Call,
    Engine,
    Subject,
    add_arguments,
    by_onnxruntime,
    by_plans,
    chosen_device,
    measure_stage,
    report,
)
from engines.bindings.stage_session import StageSession
from engines.bindings.text import GraphTextEncoder
from engines.config.presets import preset
from engines.export.graph import StageGraph
from engines.export.text import export_text_encoder, text_name
from engines.text.umt5 import UMT5Encoder

ENCODERS = {"pocket": "pocket", "UMT5": "longlive-1.3b"}
VOCAB = 1000
"""Of random prompts: the whole table would be a gigabyte of which nothing is read."""

LOW = torch.bfloat16


@dataclass(frozen=True)
class Encoding:
    """A text encoder in fp32 on the CPU, and tokens [1, N] of a prompt that fills the graph's length."""

    name: str
    encoder: UMT5Encoder
    ids: Tensor

    @classmethod
    def of(cls, name: str, layers: int | None, length: int) -> Encoding:
        """By the encoder's name, with as many layers as it has where that is not said."""
        whole = preset(ENCODERS[name]).text_encoder
        config = replace(whole, layers=layers or whole.layers, vocab=min(VOCAB, whole.vocab))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            encoder = UMT5Encoder(config).eval().requires_grad_(False)
            ids = torch.randint(config.vocab, (1, min(length, config.text_len)))
        return cls(f"{name}, {config.layers} of {whole.layers} layers", encoder, ids)

    @property
    def length(self) -> int:
        """Of the prompt."""
        return self.ids.shape[1]

    def graph(self, dtype: torch.dtype, folder: Path) -> StageGraph:
        """Raises ConfigError where packages for it are not installed."""
        return export_text_encoder(self.encoder, self.length, folder / text_name(self.length), "", dtype)

    def subject(self, device: torch.device) -> Subject:
        """What is measured."""
        exact = self._call(copy.deepcopy(self.encoder).to(device), device)()
        return Subject(self.name, f"{self.length} tokens", exact)

    def on_cpu(self, folder: Path) -> Iterator[Engine]:
        """In fp32."""
        cpu = torch.device("cpu")
        yield Engine("PyTorch", lambda: self._call(self.encoder, cpu))
        yield Engine(
            "onnxruntime",
            lambda: self._call(
                self._by(by_onnxruntime([self.graph(torch.float32, folder)]), self.encoder.token_embedding), cpu
            ),
        )

    def on_card(self, device: torch.device, folder: Path) -> Iterator[Engine]:
        """In bf16."""
        yield Engine("PyTorch", lambda: self._call(self._moved(device), device))
        yield Engine("torch.compile", lambda: self._call(torch.compile(self._moved(device)), device))
        graphs = cache(lambda: [self.graph(LOW, folder)])
        for library in LIBRARIES:
            yield Engine(library, partial(self._planned, partial(by_plans, graphs, library, device), device))

    def _planned(self, sessions: Callable[[], Sequence[StageSession]], device: torch.device) -> Call:
        embedding = copy.deepcopy(self.encoder.token_embedding).to(device, LOW)
        return self._call(self._by(sessions(), embedding), device)

    def _by(self, sessions: Sequence[StageSession], embedding: nn.Embedding) -> GraphTextEncoder:
        return GraphTextEncoder(sessions, embedding, self.encoder.config)

    def _moved(self, device: torch.device) -> UMT5Encoder:
        return copy.deepcopy(self.encoder).to(device, LOW)

    def _call(self, encode: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> Call:
        ids = self.ids.to(device)
        return torch.inference_mode()(lambda: encode(ids, torch.ones_like(ids)))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 if an engine that is here failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_encoder")
    parser.add_argument("--encoder", choices=ENCODERS, default="pocket")
    parser.add_argument("--layers", type=int, help="of it (default: all)")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64], metavar="TOKENS")
    add_arguments(parser, "prompts")
    options = parser.parse_args(arguments)
    device = chosen_device(parser, options)
    rows = (
        row
        for length in options.lengths
        for row in measure_stage(Encoding.of(options.encoder, options.layers, length), device, options.runs)
    )
    return report(rows, device, options.json)


if __name__ == "__main__":
    sys.exit(main())

"""What is measured: a model with random weights, where it runs, and a stream of it in the middle of its life."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.measure.machine import Machine
from benchmarks.measure.sizes import SEED, frame_size, resized
from engines.cache.kv_cache import CacheLayout, KVCache, cache_size
from engines.config.model import ModelConfig
from engines.config.presets import PRESETS, preset
from engines.config.quantization import WEIGHT_FORMATS, QuantizationConfig
from engines.loading.model import build_vae
from engines.quantization.inputs import InputStatistics
from engines.quantization.quantizer import quantized_copy
from engines.runner.selection import can_use_cuda_graphs, select_runner
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.streaming.warmup import warm_up
from engines.text.prompt import Prompt
from engines.vae.protocol import StreamingVAE, use_fused_ops
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import EAGER, KernelBackends, backends_for, parse_backends

PROMPT_TOKENS = 40

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What to measure, and where."""

    model: ModelConfig
    device: torch.device
    dtype: torch.dtype
    runs: int
    text: bool
    kernels: KernelBackends = EAGER
    graphs: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return min(PROMPT_TOKENS, self.model.text_encoder.text_len)

    @property
    def prompt_keys(self) -> int:
        """Keys that they are to the transformer, with one for all padding."""
        return min(self.prompt_tokens + 1, self.model.transformer.text_len)

    @property
    def facts(self) -> dict[str, object]:
        """What it was, for a report: plain data."""
        return {
            "machine": asdict(Machine.here(self.device)), "model": self.model.name, "dtype": str(self.dtype),
            "kernels": str(self.kernels), "graphs": self.graphs,
        }  # fmt: skip

    def randn(self, *shape: int) -> Tensor:
        """Random values where the networks are, in their dtype."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of a model on a device is asked."""
    parser.add_argument("--model", choices=sorted(PRESETS), default="tiny-taehv")
    parser.add_argument("--size", type=frame_size, metavar="HxW", help="pictures; the model's own by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="else bfloat16 on cuda")
    parser.add_argument("--weights", choices=WEIGHT_FORMATS, help="of the transformer's layers; else as --dtype")
    parser.add_argument("--kernels", type=parse_backends, default={}, help="auto, a choice, or op=choice,...")
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel by itself on cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--runs", type=int, default=10, help="timed calls of each stage")
    parser.add_argument("--no-text", action="store_true", help="leave out the text encoder if it does not fit")


def read_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Options:
    """What is to be measured; the kernels are printed. Ends the program where it cannot be."""
    torch.set_num_threads(arguments.threads)
    device, model = torch.device(arguments.device), resized(preset(arguments.model), arguments.size)
    if arguments.weights is not None:
        recipe = QuantizationConfig(arguments.weights)
        model = replace(model, transformer=replace(model.transformer, quantization=recipe))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu measures the CPU")
    dtype = DTYPES[arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    try:
        backends = backends_for(device, dtype, arguments.kernels)
    except ValueError as error:
        parser.error(str(error))
    graphs = can_use_cuda_graphs(backends, device) and not arguments.no_graphs
    print(f"kernels: {backends}{'; replayed from graphs' if graphs else ''}", file=sys.stderr)
    return Options(model, device, dtype, arguments.runs, not arguments.no_text, backends, graphs)


M = TypeVar("M", bound=nn.Module)


def build(make: Callable[[], M], options: Options) -> M:
    """A network with random weights."""
    torch.manual_seed(SEED)
    with options.device:
        network = make()
    return network.to(options.device, options.dtype).eval()


def build_transformer(options: Options) -> CausalTransformer:
    """One with random weights, in 8 bits where the options say so."""
    config = options.model.transformer
    whole = build(lambda: CausalTransformer(replace(config, quantization=None)), options)
    if config.quantization is None:
        return whole
    return quantized_copy(whole, config.quantization, InputStatistics()).to(options.dtype)


class Subject:
    """A generator with random weights and room for `streams` streams, and its codec."""

    def __init__(self, options: Options, streams: int, *, decodes: bool = True) -> None:
        self.options = options
        model = options.model
        self.transformer = build_transformer(options)
        self.codec: StreamingVAE = build(lambda: build_vae(model.vae), options)
        self.codec.prepare()
        use_fused_ops(self.codec, options.kernels)
        self.runner = select_runner(self.transformer, options.kernels, graphs=options.graphs)
        layout = CacheLayout.of(model.transformer, options.dtype, self.runner.kv_format)
        cache = KVCache(layout, cache_size(streams, model.stream, model.transformer), options.device)
        self.generator = Generator(self.runner, self.codec if decodes else None, cache)
        self.prompt = Prompt("random", options.randn(options.prompt_tokens, model.transformer.text_dim))

    def warm_up(self) -> None:
        """Compile and capture, in the calling thread."""
        for progress in warm_up(self.generator, self.options.model.stream):
            print(f"warming up: block {progress.done} of {progress.of}", file=sys.stderr)

    def rolled(self) -> Stream:
        """A stream whose window has rolled, decoded so far where the generator decodes."""
        stream = self.generator.open(self.options.model.stream)
        self.generator.set_prompt(stream, self.prompt)
        while stream.latent_frames <= stream.config.window_frames:
            (block,) = self.generator.generate([stream])
            if stream.decoder is not None:
                self.generator.decode(stream, block)
        self.generator.write_context([stream])
        return stream

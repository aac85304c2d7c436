"""Holds kernels and graphs against the plain fp32 path, on a model of full size with random weights.

    python -m benchmarks.parity

needs a CUDA device. The same clip, with a prompt switch in it, is made three times: plainly in fp32, plainly in
bf16, and in bf16 on the kernels. The kernels may be twice as far from fp32 as PyTorch's own bf16 is, no further.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.sizes import SEED, frame_size, resized
from engines.cache.kv_cache import CacheLayout, KVCache, cache_size
from engines.config.model import ModelConfig
from engines.config.presets import PRESETS, preset
from engines.config.stream import StreamConfig
from engines.runner.eager import EagerRunner
from engines.runner.protocol import ModelRunner
from engines.runner.selection import can_use_cuda_graphs, select_runner
from engines.streaming.generator import Generator
from engines.text.prompt import Prompt
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import KernelBackends, backends_for, parse_backends
from serving.media.whole_file import write_whole

BOUND = 2.0
"""How many times PyTorch's own error in 16 bits is allowed."""


@dataclass(frozen=True)
class Parity:
    """Errors of each block's latents against fp32, in units of their root mean square."""

    machine: Machine
    model: str
    stream: StreamConfig
    kernels: str
    plain: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the errors over the whole clip: ours to plain."""
        ours, plain = (sum(error**2 for error in errors) ** 0.5 for errors in (self.ours, self.plain))
        return ours / plain

    @property
    def kept(self) -> bool:
        """Whether the bound is. A NaN is not within it."""
        return self.ratio <= BOUND

    @override
    def __str__(self) -> str:
        rows = [f"| {i} | {p:.2e} | {o:.2e} |" for i, (p, o) in enumerate(zip(self.plain, self.ours, strict=True))]
        table = "\n".join(["| block | plain | kernels |", "|---:|---:|---:|", *rows])
        verdict = "within" if self.kept else "ABOVE"
        return (
            f"{self.model}, kernels: {self.kernels}\n{self.machine}\n\n{table}\n\n"
            f"{self.ratio:.2f} times the error of PyTorch's own, {verdict} the bound of {BOUND}"
        )

    def as_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self) | {"ratio": self.ratio, "bound": BOUND}, indent=1) + "\n"


@torch.inference_mode()
def measure(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, backends: KernelBackends, blocks: int,
    switch: int, *, graphs: bool,
) -> Parity:  # fmt: skip
    """Make `blocks` blocks each way, ours in `dtype`, with another prompt from block `switch` on."""
    torch.manual_seed(SEED)
    with device:
        exact = CausalTransformer(model.transformer).to(torch.bfloat16).float().eval()
    prompts = [Prompt(str(n), torch.randn(40, model.transformer.text_dim)[: n + 20]) for n in (0, 20)]

    def clip(dtype: torch.dtype, make: Callable[[CausalTransformer], ModelRunner]) -> Tensor:
        transformer = copy.deepcopy(exact).to(dtype)
        return _clip(transformer, make(transformer), model.stream, prompts, blocks, switch)

    def errors(dtype: torch.dtype, make: Callable[[CausalTransformer], ModelRunner]) -> tuple[float, ...]:
        found = tuple(_errors(clip(dtype, make), truth, blocks))
        print("errors by block:", *(f"{error:.2e}" for error in found), file=sys.stderr)
        return found

    truth = clip(torch.float32, EagerRunner)
    plain, ours = errors(torch.bfloat16, EagerRunner), errors(dtype, _on(backends, graphs=graphs))
    return Parity(Machine.here(device), model.name, model.stream, str(backends), plain, ours)


def _clip(
    transformer: CausalTransformer, runner: ModelRunner, config: StreamConfig, prompts: Sequence[Prompt],
    blocks: int, switch: int,
) -> Tensor:  # fmt: skip
    """Latents [frames, ...] fp32."""
    layout = CacheLayout.of(transformer.config, transformer.dtype, runner.kv_format)
    cache = KVCache(layout, cache_size(1, config, transformer.config), transformer.device)
    generator = Generator(runner, None, cache)
    stream, made = generator.open(config), []
    for number in range(blocks):
        if number in (0, switch):
            generator.set_prompt(stream, prompts[number == switch])
        made += [block.latents.float() for block in generator.generate([stream])]
    return torch.cat(made)


def _errors(made: Tensor, truth: Tensor, blocks: int) -> list[float]:
    pairs = zip(made.chunk(blocks), truth.chunk(blocks), strict=True)
    return [((a - b).square().mean().sqrt() / b.square().mean().sqrt()).item() for a, b in pairs]


def main() -> int:
    """Measure, print and write; 1 if the bound is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity")
    parser.add_argument("--model", choices=sorted(PRESETS), default="longlive-1.3b")
    parser.add_argument("--size", type=frame_size, metavar="HxW", help="pictures; the model's own by default")
    parser.add_argument("--kernels", type=parse_backends, default={}, help="auto, a choice, or op=choice,...")
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel by itself")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--switch", type=int, default=5, help="the block from which on the prompt is another")
    parser.add_argument("--json", type=Path, metavar="FILE", help="in benchmarks/results by default")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("kernels are held against fp32 on a CUDA device, and there is none here")
    device, model = torch.device("cuda"), resized(preset(arguments.model), arguments.size)
    backends = backends_for(device, torch.bfloat16, arguments.kernels)
    graphs = can_use_cuda_graphs(backends, device) and not arguments.no_graphs
    print(f"kernels: {backends}{'; replayed from graphs' if graphs else ''}", file=sys.stderr)
    result = measure(model, device, torch.bfloat16, backends, arguments.blocks, arguments.switch, graphs=graphs)
    file = arguments.json or RESULTS / f"parity_{model.name}_{model.stream.height}x{model.stream.width}_cuda.json"
    write_whole(file, result.as_json())
    print(f"{result}\n{file}")
    return 0 if result.kept else 1


def _on(backends: KernelBackends, *, graphs: bool) -> Callable[[CausalTransformer], ModelRunner]:
    """A runner on kernels."""
    return lambda network: select_runner(network, backends, graphs=graphs)


if __name__ == "__main__":
    sys.exit(main())

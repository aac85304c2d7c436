"""The bytes that a codec's operations move, one after the other as they are written, and the least time for it.

    python -m benchmarks.traffic

needs no GPU: the decoder runs over a block on tensors without memory, once on torch's own operators and once fused
(`kernels/vae/fused.py`), and each operator counts what it reads and writes. A floor is the sum over operators of
the longer of computing and moving, at a chip's datasheet rates: what nothing but another algorithm, more fusion or
the caches can beat. Two things are charged as CUDA does them: cuDNN's convolutions leave the bias to a pass of its
own, and an operator in place both reads and writes. What cuDNN moves to change a layout is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from benchmarks.measure.counts import Work
from benchmarks.measure.machine import ROOT, Floor, Rates
from engines.config.model import ModelConfig
from engines.config.networks import PatchVAEConfig, TAEHVConfig, VAEConfig
from engines.config.presets import preset
from engines.loading.model import build_vae
from engines.vae.protocol import StreamingVAE
from kernels.vae.fused import FUSED
from serving.media.whole_file import write_whole

CHIPS = {
    "H100": Rates(989.4e12, 3.35e12),
    "H200": Rates(989.4e12, 4.8e12),
    "A100": Rates(312e12, 2.039e12),
    "RTX 4090": Rates(165.2e12, 1.008e12),
}
"""Dense bf16 with fp32 sums, and memory (NVIDIA's datasheets and Ada whitepaper)."""

CODECS = {VAEConfig: "Wan VAE", TAEHVConfig: "TAEHV", PatchVAEConfig: "patch VAE"}

OUTPUT = ROOT / "benchmarks" / "results" / "decoder_traffic.json"

CONVOLUTION = "aten::convolution"

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the axes of a convolution's weights."""

UNWRITTEN = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")
"""Operators that reserve memory and touch none of it."""

WRITTEN_ONLY = ("kept",)
"""Arguments that an operator writes without reading them."""


@dataclass(frozen=True)
class Operator:
    """One call: its name, and what it computes and moves."""

    name: str
    work: Work

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution itself, rather than what lies between them."""
        return self.name == CONVOLUTION


class TrafficCounter(TorchDispatchMode):
    """Lists the operators that run inside, but for views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.operators: list[Operator] = []

    @override
    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it."""
        with FlopCounterMode(display=False) as counter:
            result = func(*args, **(kwargs or {}))
        name = func._schema.name
        nbytes = sum(_moved(func, args, kwargs or {}, result))
        if nbytes and name not in UNWRITTEN:
            self.operators.append(Operator(name, Work(counter.get_total_flops(), nbytes)))
        return result if name != CONVOLUTION else self._convolved(args[1], args[2], result)

    def _convolved(self, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
        """What cuDNN would return: in the layout of the weights, and the bias added by another operator."""
        if bias is not None:
            self.operators.append(Operator("bias", Work(0, 2 * output.nbytes)))
        layout = LAYOUTS[weight.ndim]
        return output.contiguous(memory_format=layout) if weight.is_contiguous(memory_format=layout) else output


def _moved(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Iterator[int]:
    """Bytes of each tensor read, and of each written. A view has none."""
    returns = func._schema.returns
    if returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
        return
    parameters = zip(func._schema.arguments, args, strict=False)
    named = ((a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs)
    for parameter, argument in (*parameters, *named):
        written = parameter.alias_info is not None and parameter.alias_info.is_write
        times = 2 if written and parameter.name not in WRITTEN_ONLY else 1
        yield from (times * _held(t) for t in tree_leaves(argument) if isinstance(t, Tensor))
    if not any(r.alias_info is not None for r in returns):
        yield from (_held(t) for t in tree_leaves(result) if isinstance(t, Tensor))


def _held(x: Tensor) -> int:
    """Bytes, each counted once however often it is repeated by a stride of 0."""
    return min(x.nbytes, x.untyped_storage().nbytes())


@torch.no_grad()
def decoder_operators(model: ModelConfig, *, fused: bool, dtype: torch.dtype = torch.bfloat16) -> list[Operator]:
    """What the codec of `model` runs to decode a block in the middle of a stream."""
    codec: StreamingVAE = build_vae(model.vae).to("meta", dtype)
    if fused:
        codec.fuse(FUSED)
    shape = model.stream.latent_shape(model.vae.latent_channels, model.stream.block_frames)
    latents = torch.empty(1, *shape, device="meta", dtype=dtype)
    cache = codec.decode(latents, codec.start_decoding()).cache
    with TrafficCounter() as counter:
        codec.decode(latents, cache)
    return counter.operators


@dataclass(frozen=True)
class Row:
    """A decoder at a size, over a block: FLOPs, bytes of the convolutions and between them, and floors in ms."""

    codec: str
    size: str
    fused: bool
    flops: int
    conv_bytes: int
    other_bytes: int
    operators: int
    floor_ms: dict[str, float]

    @override
    def __str__(self) -> str:
        floors = " | ".join(f"{ms:.1f}" for ms in self.floor_ms.values())
        return (
            f"| {self.codec} {self.size} | {'fused' if self.fused else 'plain'} | {self.flops / 1e12:.2f} "
            f"| {self.conv_bytes / 1e9:.1f} | {self.other_bytes / 1e9:.1f} | {self.operators} | {floors} |"
        )


def count(model: ModelConfig, *, fused: bool) -> Row:
    """The row of one decoder."""
    operators = decoder_operators(model, fused=fused)
    floors = {name: sum(floor.ms for floor in _floors(rates, operators)) for name, rates in CHIPS.items()}
    return Row(
        codec=CODECS[type(model.vae)],
        size=f"{model.stream.height}x{model.stream.width}",
        fused=fused,
        flops=sum(operator.work.flops for operator in operators),
        conv_bytes=sum(operator.work.nbytes for operator in operators if operator.convolves),
        other_bytes=sum(operator.work.nbytes for operator in operators if not operator.convolves),
        operators=len(operators),
        floor_ms=floors,
    )


def _floors(rates: Rates, operators: Sequence[Operator]) -> Iterator[Floor]:
    return (rates.floor(operator.work) for operator in operators)


def models() -> list[ModelConfig]:
    """The real decoders at the two sizes that are measured on GPUs."""
    model = preset("longlive-1.3b")
    sizes = (model.stream, replace(model.stream, height=320, width=576))
    return [replace(model, vae=vae, stream=size) for vae in (model.vae, TAEHVConfig()) for size in sizes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the counts go; default: %(default)s")
    options = parser.parse_args(arguments)
    floors = " | ".join(f"{chip}, floor in ms" for chip in CHIPS)
    print(f"| a block | path | TFLOP | GB, convolutions | GB, between | operators | {floors} |")
    print("|---|---|---:|---:|---:|---:|" + "---:|" * len(CHIPS))
    rows = [count(model, fused=fused) for model in models() for fused in (False, True)]
    print(*rows, sep="\n")
    write_whole(options.output, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures what loading a transformer holds in memory, in files of the published formats and tensor sizes.

    python -m benchmarks.loading --megabytes 512

Each case loads in a fresh process. What counts is anonymous memory (RssAnon of /proc/self/status, sampled every
millisecond): pages of the mapped file are the system's to take back, and are told beside it. `plain` loads as
LongLive's code does: a whole copy of the checkpoint beside the network, in fp32, then cast. The files have just
been written, so times are those of a warm page cache.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.measure.timing import timed
from engines.config.networks import TransformerConfig
from engines.config.presets import WAN_1_3B, preset
from engines.loading.footprint import parameter_bytes
from engines.loading.loader import load_transformer
from engines.loading.lora import LoRA, LoRAFile, merging
from engines.wan.transformer import CausalTransformer
from serving.media.whole_file import write_whole

WAN, BASE, LORA = "diffusion_pytorch_model.safetensors", "longlive_base.pt", "lora.pt"
LORA_RANK = 256
SAMPLE_EVERY_S = 1e-3
STATUS = Path("/proc/self/status")


class Resident(NamedTuple):
    """Memory of this process: its own pages, and those of mapped files."""

    anonymous: int
    file: int

    @classmethod
    def now(cls) -> Self:
        """As Linux tells it."""
        status = STATUS.read_text()
        return cls(
            *(int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) * 1024 for field in ("RssAnon", "RssFile"))
        )


class ResidentPeak:
    """The most that the process held beyond what it held on entry, sampled by a thread.

    On entry glibc gives freed memory back to the system: taking it again would not be seen as growth.
    """

    def __enter__(self) -> Self:
        ctypes.CDLL(None).malloc_trim(0)
        self._before = self._peak = Resident.now()
        self._left = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def _sample(self) -> None:
        over = False
        while not over:
            over = self._left.wait(SAMPLE_EVERY_S)
            self._peak = Resident(*map(max, self._peak, Resident.now()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._left.set()
        self._sampler.join()

    @property
    def grown(self) -> Resident:
        """Each kind's peak; they need not have been at one moment."""
        return Resident(*(peak - before for peak, before in zip(self._peak, self._before, strict=True)))


@dataclass(frozen=True)
class Case:
    """One way to load."""

    name: str
    file: str
    lora: str | None
    dtype: torch.dtype
    plain: bool = False

    def load(self, config: TransformerConfig, folder: Path) -> CausalTransformer:
        """Do it, on the CPU."""
        lora = None if self.lora is None else folder / self.lora
        if self.plain:
            return _load_plainly(config, folder / self.file, lora).to(self.dtype)
        return load_transformer(config, folder / self.file, lora, "cpu", self.dtype)


CASES = {
    case.name: case
    for case in (
        Case("safetensors to bf16", WAN, None, torch.bfloat16),
        Case("safetensors to fp32", WAN, None, torch.float32),
        Case("pt to bf16", BASE, None, torch.bfloat16),
        Case("pt + LoRA to bf16", BASE, LORA, torch.bfloat16),
        Case("pt to bf16, plain", BASE, None, torch.bfloat16, plain=True),
        Case("pt + LoRA to bf16, plain", BASE, LORA, torch.bfloat16, plain=True),
    )
}


def _load_plainly(config: TransformerConfig, file: Path, lora: Path | None) -> CausalTransformer:
    network = CausalTransformer(config)
    state = torch.load(file, map_location="cpu", weights_only=True)["generator"]
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    if lora is not None:
        merge = merging([LoRA.open(LoRAFile(lora), network)], network)
        for name, weight in network.state_dict().items():
            weight.copy_(merge(name, weight))
    return network


class Loaded(NamedTuple):
    """What one case took; `model_bytes` is what remains."""

    ms: float
    model_bytes: int
    anonymous_peak_bytes: int
    file_peak_bytes: int


def measure(case: Case, config: TransformerConfig, folder: Path) -> Loaded:
    """Load in this process. What Python imports for the first network on `meta`, some 70 MB, is not counted."""
    parameter_bytes(preset("tiny"), case.dtype)
    with ResidentPeak() as peak:
        loading = timed(lambda: case.load(config, folder), torch.device("cpu"))
    return Loaded(loading.ms, nbytes(loading.value), *peak.grown)


def nbytes(network: nn.Module) -> int:
    """Of all parameters."""
    return sum(parameter.nbytes for parameter in network.parameters())


def measure_apart(case: Case, layers: int, folder: Path) -> Loaded:
    """Load in a process of its own."""
    command = (
        sys.executable,
        "-m",
        __spec__.name,
        "--layers",
        str(layers),
        "--case",
        case.name,
        "--in",
        str(folder),
    )
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return Loaded(*json.loads(answer.stdout))


def layers_for(megabytes: int) -> int:
    """Layers of Wan's size with which a checkpoint in fp32 comes nearest to `megabytes`; at least one."""
    with torch.device("meta"):
        one, two = (nbytes(CausalTransformer(replace(WAN_1_3B, layers=layers))) for layers in (1, 2))
    return max(1, 1 + round((megabytes * 1e6 - one) / (two - one)))


def write_files(config: TransformerConfig, folder: Path) -> int:
    """Write the three files, in fp32 as published; the bytes of the largest tensor."""
    network = CausalTransformer(config)
    state = network.state_dict()
    save_file(state, folder / WAN)
    torch.save({"generator": {f"model.{name}": tensor for name, tensor in state.items()}}, folder / BASE)
    torch.save({"generator_lora": _random_lora(network)}, folder / LORA)
    return max(tensor.nbytes for tensor in state.values())


def _random_lora(network: CausalTransformer) -> dict[str, Tensor]:
    factors = {}
    for name, layer in network.blocks.named_modules(prefix="base_model.model.blocks"):
        if isinstance(layer, nn.Linear):
            factors[f"{name}.lora_A.weight"] = torch.randn(LORA_RANK, layer.in_features)
            factors[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, LORA_RANK)
    return factors


def as_table(results: dict[str, Loaded], largest_tensor_bytes: int) -> str:
    """To read."""
    rows = [
        f"largest tensor {largest_tensor_bytes / 1e6:.1f} MB",
        "| case | model MB | peak MB | above the model, in largest tensors | mapped MB | ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, loaded in results.items():
        above = (loaded.anonymous_peak_bytes - loaded.model_bytes) / largest_tensor_bytes
        rows.append(
            f"| {name} | {loaded.model_bytes / 1e6:.1f} | {loaded.anonymous_peak_bytes / 1e6:.1f} | {above:.2f} "
            f"| {loaded.file_peak_bytes / 1e6:.1f} | {loaded.ms:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading")
    parser.add_argument("--megabytes", type=int, default=512, help="about the size of the checkpoint in fp32")
    parser.add_argument("--case", choices=sorted(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        config = replace(WAN_1_3B, layers=arguments.layers)
        print(json.dumps(measure(CASES[arguments.case], config, arguments.folder)))
        return
    _measure_all(layers_for(arguments.megabytes))


def _measure_all(layers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        largest_tensor_bytes = write_files(replace(WAN_1_3B, layers=layers), Path(folder))
        results = {name: measure_apart(case, layers, Path(folder)) for name, case in CASES.items()}
    machine = Machine.here(torch.device("cpu"))
    print(f"{machine}\n{as_table(results, largest_tensor_bytes)}")
    report = {
        "machine": asdict(machine),
        "layers": layers,
        "largest_tensor_bytes": largest_tensor_bytes,
        "cases": {name: loaded._asdict() for name, loaded in results.items()},
    }
    write_whole(RESULTS / "loading_cpu.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

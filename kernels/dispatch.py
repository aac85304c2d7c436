"""Which implementation computes each operation: decided once, printed at start, and never changed in silence.

    op                  choices
    attention           reference, library, flash-attn, triton  one row's queries over its window
    batched_attention   reference, library, flash-attn, triton  those of several rows at once
    prompt_attention    reference, triton                       queries over the prompt
    qk_norm_rope        reference, triton                       q/k norm, RoPE, and the write into slots
    layernorm_modulate  reference, triton                       a gated branch added, LayerNorm, scale and shift
    linear              library, triton                         matrix products with what follows them
    flow_step           reference, triton                       flow to clean latents to the next noise level
    decoder             reference, triton                       what lies between the codec's convolutions
    keys                plain, int8                             how windows keep keys, and so how they are scored
    values              plain, int8                             how windows keep values
    value_sums          fp32, fp16                              in what a tile's weighted values are added up

"reference" is plain PyTorch. "library" is what PyTorch brings: cuDNN's attention on CUDA and its own on a CPU,
cuBLAS. INT8 keys and values and sums in fp16 change results, and are there only where they are asked for. This
file imports no Triton: there are machines without.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from kernels.tiles import ALIKE, ARCHITECTURES, FP16_SUMS, interpreted

ATTENTIONS = ("reference", "library", "flash-attn", "triton")
LIBRARIES = ("library", "flash-attn")
REFERENCE_OR_TRITON = ("reference", "triton")

CHOICES: Mapping[str, tuple[str, ...]] = {
    "attention": ATTENTIONS,
    "batched_attention": ATTENTIONS,
    "prompt_attention": REFERENCE_OR_TRITON,
    "qk_norm_rope": REFERENCE_OR_TRITON,
    "layernorm_modulate": REFERENCE_OR_TRITON,
    "linear": ("library", "triton"),
    "flow_step": REFERENCE_OR_TRITON,
    "decoder": REFERENCE_OR_TRITON,
    "keys": ("plain", "int8"),
    "values": ("plain", "int8"),
    "value_sums": ("fp32", "fp16"),
}
"""What each op can be, by its name in `KernelBackends`."""

LIBRARY_ATTENTION = (90, 100)
"""Where a library's attention is published to be faster than Triton's: 595 or 648 against 395 TFLOP/s on sm_90
(Shah et al. 2024, figures for head dim 128 at 16k). On sm_100 cuDNN has kernels of its own too."""

LIBRARY_DTYPES = (torch.bfloat16, torch.float16)
"""In which libraries attend on CUDA."""

LIBRARY_ROWS = {"keys": "plain", "values": "plain", "value_sums": "fp32"}
"""Of windows, all that a library attends."""


@dataclass(frozen=True)
class KernelBackends:
    """A choice for every op; the default is plain PyTorch throughout."""

    attention: str = "reference"
    batched_attention: str = "reference"
    prompt_attention: str = "reference"
    qk_norm_rope: str = "reference"
    layernorm_modulate: str = "reference"
    linear: str = "library"
    flow_step: str = "reference"
    decoder: str = "reference"
    keys: str = "plain"
    values: str = "plain"
    value_sums: str = "fp32"

    def __post_init__(self) -> None:
        for op, choice in asdict(self).items():
            if choice not in CHOICES[op]:
                raise ValueError(f"{op} cannot be {choice!r}; it can be {', '.join(CHOICES[op])}")

    def __str__(self) -> str:
        """Ops by choice, on one line."""
        choices = dict.fromkeys(asdict(self).values())
        groups = {choice: [op for op, chosen in asdict(self).items() if chosen == choice] for choice in choices}
        return "; ".join(f"{choice}: {', '.join(ops)}" for choice, ops in groups.items())

    @property
    def uses_triton(self) -> bool:
        """Whether any op is a Triton kernel."""
        return "triton" in asdict(self).values()

    @property
    def supports_cuda_graphs(self) -> bool:
        """Whether a captured pass serves other rows: a reference reads their integers back."""
        ops = {self.attention, self.batched_attention, self.qk_norm_rope, self.prompt_attention}
        return "reference" not in ops


EAGER = KernelBackends()
"""PyTorch's own operators, on any device: what defines the results."""


def parse_backends(text: str) -> dict[str, str]:
    """What a setting asks for: "auto", a choice for all ops that know it, or "op=choice,...", from left to right.

    Raises:
        ValueError: there is no such op or choice.

    """
    asked: dict[str, str] = {}
    for word in text.split(","):
        op, equals, choice = word.strip().partition("=")
        if equals:
            _require_known("op", op, tuple(CHOICES))
            _require_known(f"choice for {op}", choice, CHOICES[op])
            asked[op] = choice
        elif op != "auto":
            _require_known("choice", op, ("auto", *ATTENTIONS))
            asked |= {name: op for name, choices in CHOICES.items() if op in choices}
            asked |= {"linear": "library"} if op == "reference" else {}
    return asked


def backends_for(
    device: torch.device, dtype: torch.dtype, asked: Mapping[str, str] | None = None
) -> KernelBackends:
    """The fastest known for `device` and a model in `dtype`, but for what is asked for.

    A chip for which no kernel has a tile gets PyTorch's own operators, which choose a library themselves.

    Raises:
        ValueError: something asked for cannot run here.

    """
    asked = asked or {}
    backends = replace(_fastest(device, dtype, asked), **asked)
    _require_runnable(backends, device, dtype)
    return backends


def _fastest(device: torch.device, dtype: torch.dtype, asked: Mapping[str, str]) -> KernelBackends:
    """Of what can run beside all that is asked for."""
    if device.type != "cuda":
        return EAGER
    chip = chip_of(device)
    if chip not in ARCHITECTURES:
        return EAGER
    fused = KernelBackends(**{op: "triton" for op, choices in CHOICES.items() if "reference" in choices})
    attended = dtype in LIBRARY_DTYPES and all(asked.get(op, rows) == rows for op, rows in LIBRARY_ROWS.items())
    return replace(fused, attention="library") if chip in LIBRARY_ATTENTION and attended else fused


def _require_runnable(backends: KernelBackends, device: torch.device, dtype: torch.dtype) -> None:
    if backends != EAGER and importlib.util.find_spec("triton") is None:
        # Without a kernel of its own, too: it runs in `engines.runner.fused`, which imports them all.
        raise ValueError(f"Triton is not installed, and the kernels are {backends}; ask for 'reference'")
    if backends.uses_triton and device.type != "cuda" and not interpreted():
        raise ValueError(f"Triton kernels need a CUDA device or TRITON_INTERPRET=1; the device is {device}")
    attentions = {backends.attention, backends.batched_attention}
    if backends.value_sums == "fp16" and device.type == "cuda" and chip_of(device) not in FP16_SUMS:
        raise ValueError(f"sm_{chip_of(device)} sums in fp32 as fast as in fp16; leave out value_sums=fp16")
    _require_attended(backends, attentions)
    if attentions & set(LIBRARIES) and device.type == "cuda" and dtype not in LIBRARY_DTYPES:
        raise ValueError(f"on CUDA no library attends in {dtype}; ask for attention=triton, or 16 bits")
    if "flash-attn" in attentions and device.type != "cuda":
        raise ValueError(f"flash-attn needs a CUDA device; the device is {device}")
    if "flash-attn" in attentions and importlib.util.find_spec("flash_attn") is None:
        raise ValueError("flash-attn is asked for, but the package flash_attn is not installed")


def _require_attended(backends: KernelBackends, attentions: set[str]) -> None:
    """Raise ValueError unless `attentions` know the keys, values and sums that are asked for."""
    remedy = "ask for attention=triton,batched_attention=triton as well"
    if attentions & set(LIBRARIES):
        for rows in ("keys", "values"):
            if asdict(backends)[rows] == "int8":
                raise ValueError(f"no library attends INT8 {rows}; {remedy}")
    if backends.value_sums == "fp16" and attentions != {"triton"}:
        raise ValueError(f"only Triton's attention sums values in fp16; {remedy}")


def chip_of(device: torch.device) -> int:
    """The architecture of a CUDA device, as tiles know it."""
    major, minor = torch.cuda.get_device_capability(device)
    return ALIKE.get(10 * major + minor, 10 * major + minor)


def _require_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")

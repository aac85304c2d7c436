"""Times every kernel beside its reference and the library, and beside the least time that the GPU allows.

    python -m benchmarks.kernels

needs a CUDA device; `--tiny` runs the same on small shapes under Triton's interpreter, where only the checks mean
something. Every implementation of an op is checked against its reference in fp32 before one is timed, with memory
that nobody wrote full of NaN. Calls go round among inputs that no cache holds together, as one graph, so that a
time is the device's alone. What is found is kept even if a kernel leaves the GPU unusable for the next.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_cases.attention import DENSE, attention_cases
from benchmarks.kernel_cases.case import Case, MakeCase, Maker, Sizes
from benchmarks.kernel_cases.decoder import decoder_cases
from benchmarks.kernel_cases.eight_bits import eight_bit_cases
from benchmarks.kernel_cases.slot_choice import slot_cases
from benchmarks.kernel_cases.token_rows import token_row_cases
from benchmarks.measure.counts import Work
from benchmarks.measure.machine import RESULTS, Machine, Rates
from benchmarks.measure.timing import Samples, sample
from kernels.tiles import interpreted
from serving.media.whole_file import write_whole

L2_TIMES = 4
"""Inputs take at least so many times the bytes of the L2 cache."""

MOST_SETS = 24

LEAST_CALLS = 16
"""In one graph, whose launch is within the time that is measured."""


@dataclass(frozen=True)
class Row:
    """One implementation of one case: how far it is from the reference, and its times if it is close enough."""

    case: str
    provider: str
    work: Work
    rms_error: float | None
    bound: float
    times: Samples | None
    failed: str | None

    @property
    def right(self) -> bool:
        """It ran, and is close enough. A NaN is not."""
        return self.failed is None and self.rms_error is not None and self.rms_error <= self.bound


def all_cases(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> list[MakeCase]:
    """Every op."""
    rooms = (attention_cases, slot_cases, token_row_cases, eight_bit_cases, decoder_cases)
    make = Maker(sizes, device, dtype)
    return [case for cases in rooms for case in cases(make)]


def measure(sizes: Sizes, device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Case by case check all implementations, then time what is right. A row comes as soon as it is known."""
    for make in all_cases(sizes, device, dtype):
        case = make(1)
        checked = {name: _check(case, name) for name in case.providers}
        nbytes = case.set_bytes
        del case
        yield from _timed(make, nbytes, checked, device, runs)


def _check(case: Case, provider: str) -> tuple[float | None, str | None]:
    """The error of a provider, or why there is none."""
    try:
        with unwritten_is_nan(case.device):
            # The truth may be written where this was.
            made = [x.clone() for x in case.providers[provider](0)]
            return _rms_error(made, case.truth(0)), None
    except Exception as error:  # Whatever it is, the row says it, and the others are measured all the same.
        return None, _told(error)


def _rms_error(made: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest over the outputs, in units of the truth's root mean square. NaN if anything is."""
    errors = [
        ((ours.float() - true.float()).square().mean().sqrt() / true.float().square().mean().sqrt()).item()
        for ours, true in zip(made, truth, strict=True)
    ]
    return float("nan") if any(error != error for error in errors) else max(errors)


@contextmanager
def unwritten_is_nan(device: torch.device) -> Iterator[None]:
    """Within it torch.empty is full of NaN. PyTorch does so where it is to be deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _timed(
    make: Callable[[int], Case],
    nbytes: int,
    checked: Mapping[str, tuple[float | None, str | None]],
    device: torch.device,
    runs: int,
) -> Iterator[Row]:
    sets = _sets(nbytes, device)
    case = make(sets)
    for provider, (error, failed) in checked.items():
        row = Row(case.name, provider, case.work, error, case.bound, None, failed)
        if not row.right:
            yield row
            continue
        try:
            calls = 1 if device.type != "cuda" else max(sets, LEAST_CALLS)
            times, _ = sample(_round(case.providers[provider], sets, calls, device), runs, device)
            yield replace(row, times=Samples(tuple(ms / calls for ms in times.ms)))
        except Exception as failure:  # As for a check.
            yield replace(row, failed=_told(failure))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _sets(nbytes: int, device: torch.device) -> int:
    """Enough inputs that none is in the cache when its turn comes."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(MOST_SETS, -(-L2_TIMES * cache // nbytes)))


def _round(
    call: Callable[[int], Sequence[Tensor]], sets: int, calls: int, device: torch.device
) -> Callable[[int], None]:
    """So many calls, round and round the inputs: on CUDA as one graph."""

    def round_and_round() -> None:
        for i in range(calls):
            call(i % sets)

    if device.type != "cuda":
        return lambda _: round_and_round()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        round_and_round()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        round_and_round()
    return lambda _: graph.replay()


def _heard(row: Row) -> Row:
    """Say how a row came out, for whoever has to stop before the end."""
    found = row.failed or (f"{row.times.median_ms:.4f} ms" if row.times else f"error {row.rms_error:.1e}")
    print(f"{row.case}: {row.provider}: {found}", file=sys.stderr)
    return row


def as_table(rows: Sequence[Row], rates: Rates) -> str:
    """What was found, to read."""
    lines = [
        "| case | implementation | rms error | median ms | floor ms | bound by | ms / floor | TOP/s | GB/s |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        error = "-" if row.rms_error is None else f"{row.rms_error:.1e}"
        if row.times is None:
            reason = row.failed or f"error above {row.bound:.0e}"
            lines.append(f"| {row.case} | {row.provider} | {error} | not timed: {reason} | | | | | |")
            continue
        floor, ms = rates.floor(row.work), row.times.median_ms
        ops = row.work.flops + row.work.eight_bit_ops
        lines.append(
            f"| {row.case} | {row.provider} | {error} | {ms:.4f} | {floor.ms:.4f} | {floor.bound_by} "
            f"| {ms / floor.ms:.2f} | {ops / ms / 1e9:.0f} | {row.work.nbytes / ms / 1e6:.0f} |"
        )
    return "\n".join(lines)


def as_comparison(rows: Sequence[Row]) -> str:
    """What it costs a library to find a run on the device, beside a call that the host tells of it."""
    times = {(row.case, row.provider): row.times.median_ms for row in rows if row.times is not None}
    lines = []
    for (case, provider), dense_ms in times.items():
        if provider == DENSE and (bound_ms := times.get((case, "library"))) is not None:
            lines.append(f"{case}: library through device bounds {bound_ms / dense_ms:.2f} x the dense call")
    return "\n".join(lines)


def as_json(rows: Sequence[Row], machine: Machine, rates: Rates, sizes: Sizes, dtype: torch.dtype) -> str:
    """Everything, with every sample."""
    result = {
        "machine": asdict(machine),
        "rates": asdict(rates),
        "sizes": asdict(sizes),
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": [_row_json(row, rates) for row in rows],
    }
    return json.dumps(result, indent=1) + "\n"


def _row_json(row: Row, rates: Rates) -> dict[str, Any]:
    floor = rates.floor(row.work)
    facts = {
        "case": row.case, "provider": row.provider, **asdict(row.work), "rms_error": row.rms_error,
        "rms_bound": row.bound, "failed": row.failed, "floor_ms": floor.ms, "bound_by": floor.bound_by,
    }  # fmt: skip
    if row.times is None:
        return facts
    median = row.times.median_ms
    return facts | {"median_ms": median, "median_by_floor": median / floor.ms, "samples_ms": row.times.ms}


def main() -> int:
    """Measure what the command line asks for; 1 if an implementation failed or was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU under the interpreter")
    parser.add_argument("--size", choices=("480x832", "320x576"), default="480x832")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="in benchmarks/results by default")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("kernels are timed on a CUDA device, and there is none here; --tiny checks them without")
    if arguments.tiny and not interpreted():
        parser.error("--tiny runs under Triton's interpreter: set TRITON_INTERPRET=1")
    device = torch.device("cpu" if arguments.tiny else "cuda")
    sizes = Sizes.tiny() if arguments.tiny else Sizes.longlive(arguments.size)
    dtype = torch.float32 if arguments.tiny else torch.bfloat16
    # First of all, while there surely is a GPU that works.
    rates, machine = Rates.measure(device, dtype, eight_bits=True), Machine.here(device)
    file = arguments.json or RESULTS / f"kernels_{'tiny_cpu' if arguments.tiny else f'{arguments.size}_cuda'}.json"
    rows: list[Row] = []
    try:
        with torch.inference_mode():
            rows.extend(_heard(row) for row in measure(sizes, device, dtype, arguments.runs))
    finally:
        write_whole(file, as_json(rows, machine, rates, sizes, dtype))
        print(f"{machine}\n\n{as_table(rows, rates)}\n{as_comparison(rows)}\n{file}")
    return 0 if all(row.right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compile every configuration of every kernel for its chip, and keep a table of what came out.

    python -m benchmarks.kernel_table

needs no GPU. It fails, after writing the table, if one spills, needs more shared memory than its chip has, or
lacks the tensor-core instruction that it is there for. An op takes part by a line in `OPS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.kernel_cases.compiler import Compiled, compile_case
from benchmarks.measure.machine import ROOT, Machine
from kernels import flow_step, layernorm_modulate, linear, linear_int8, quantize, rms_norm
from kernels.attention import qk_norm_rope, rotate_slots, window
from kernels.slot_choice import choose_slots, copy_slots
from kernels.tiles import AotCase, AotCases
from kernels.vae import causal_pad, conv_epilogue, frame_pairs
from serving.media.whole_file import write_whole

OPS: tuple[AotCases, ...] = (
    causal_pad.aot_cases,
    choose_slots.aot_cases,
    conv_epilogue.aot_cases,
    copy_slots.aot_cases,
    flow_step.aot_cases,
    frame_pairs.aot_cases,
    layernorm_modulate.aot_cases,
    linear.aot_cases,
    linear_int8.aot_cases,
    qk_norm_rope.aot_cases,
    quantize.aot_cases,
    rms_norm.aot_cases,
    rotate_slots.aot_cases,
    window.aot_cases,
)

OUTPUT = ROOT / "benchmarks" / "results" / "kernel_table.json"

COLUMNS = """\
| kernel | sm | warps | registers | spills | shared bytes | instructions |
|---|---:|---:|---:|---:|---:|---|"""


def all_cases() -> list[AotCase]:
    """Those of every op.

    Raises:
        ValueError: two have one name.

    """
    cases = [case for op in OPS for case in op()]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several cases are called {twice}")
    return cases


def choose(cases: Sequence[AotCase], only: Sequence[str]) -> list[AotCase]:
    """The cases of these names, or all where none is named.

    Raises:
        ValueError: there is none of a name.

    """
    by_name = {case.name: case for case in cases}
    unknown = sorted(set(only) - set(by_name))
    if unknown:
        raise ValueError(f"no case is called {unknown}; there are {sorted(by_name)}")
    return [by_name[name] for name in only] if only else list(cases)


def as_json(rows: Sequence[tuple[AotCase, Compiled]]) -> str:
    """The table to keep: what became of each case, and who measured its tile."""
    kernels = [
        compiled.as_json() | {"source": case.tile.source, "faults": compiled.faults(case)}
        for case, compiled in rows
    ]
    machine = asdict(Machine.here(torch.device("cpu")))
    return json.dumps({"machine": machine, "kernels": kernels}, indent=1) + "\n"


def as_row(compiled: Compiled) -> str:
    """A line of the table to read."""
    opcodes = ", ".join(f"{count} {name}" for name, count in compiled.opcodes.items())
    return (
        f"| {compiled.name} | {compiled.architecture} | {compiled.warps} | {compiled.registers} "
        f"| {compiled.spills} | {compiled.shared_bytes} | {opcodes} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, write; 1 if a kernel cannot be used as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases to compile; default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the table goes; default: %(default)s")
    options = parser.parse_args(arguments)
    print(COLUMNS)
    rows = []
    for case in choose(all_cases(), options.only):
        compiled = compile_case(case)
        rows.append((case, compiled))
        print(as_row(compiled), flush=True)
    write_whole(options.output, as_json(rows))
    faults = [fault for case, compiled in rows for fault in compiled.faults(case)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

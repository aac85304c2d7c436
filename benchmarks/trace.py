"""Writes what a device does in one steady block, decoded while its clean pass runs, as a trace for Perfetto.

    python -m benchmarks.trace --model longlive-1.3b --device cuda --json trace.json.gz

The file is a gzipped Chrome trace: ui.perfetto.dev shows gaps between kernels, and what waits for what.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.measure.machine import RESULTS
from benchmarks.measure.subject import Options, Subject, add_arguments, read_options
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream


def trace(options: Options, file: Path) -> None:
    """Trace one block of a stream whose window has rolled."""
    subject = Subject(options, streams=1)
    if options.graphs:
        subject.warm_up()
    stream = subject.rolled()
    _block(subject.generator, stream)
    activities = [ProfilerActivity.CPU]
    if options.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(options.device)
    with profile(activities=activities) as profiler:
        _block(subject.generator, stream)
        if options.device.type == "cuda":
            torch.cuda.synchronize(options.device)
    profiler.export_chrome_trace(str(file))


def _block(generator: Generator, stream: Stream) -> None:
    with record_function("passes"):
        (block,) = generator.generate([stream])
    with record_function("clean pass"):
        generator.write_context([stream])
    with record_function("pictures"):
        generator.decode(stream, block)


def main() -> int:
    """Trace what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace")
    add_arguments(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=RESULTS / "trace.json.gz", help="its name ends with .gz"
    )
    arguments = parser.parse_args()
    trace(read_options(parser, arguments), arguments.json)
    print(f"{arguments.json}: {arguments.json.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

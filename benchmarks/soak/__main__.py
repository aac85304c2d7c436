"""Sessions that go on while the replicas they live on are killed and stopped.

    python -m benchmarks.soak --kills 100 --sessions 8

A server with three denoisers, two decoders, two text encoders and two managers, each in a process of its own. Its
clients play at 8 frames a second, half the usual pace, and pictures of 32x48: so eight sessions fit on two cores
with some room for what a fault costs. They say prompts, pause and resume, fork, record, and read again what they
saw. One fault at a time: SIGKILL, or SIGSTOP for 1, 3 or 10 s, until all is whole again. One in ten kills a
denoiser and the manager of one of its sessions at once; that session may be lost, and its client must be told so.
The same seed gives the same faults and the same clients, but not the same moments.

    python -m benchmarks.soak --doors --minutes 30

`longtake serve` as a user starts it, with four such clients. No replica is hit: watchers come and go, clients that
read nothing are killed, the disk of recordings is full for a while (as root, who may mount one in memory), and now
and then the proxy is killed. Nothing may be lost, and from minute 10 on the memory of each process must be flat.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure.machine import RESULTS, Machine
from benchmarks.soak.doors import doors_summary, doors_violations, missed_marks, soak_doors
from benchmarks.soak.report import summary, violations
from benchmarks.soak.run import soak
from serving.media.whole_file import write_whole


def main() -> int:
    """Soak, print and keep; 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="faults (default: 100)")
    parser.add_argument("--sessions", type=int, default=8, help="at a time (default: 8)")
    parser.add_argument("--doors", action="store_true", help="disturb the doors, not the replicas")
    parser.add_argument("--minutes", type=float, default=30.0, help="of --doors (default: 30)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="to do a run again")
    parser.add_argument("--output", type=Path, help="the JSON file; else one among the results")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    print(f"seed {options.seed}", flush=True)
    machine = asdict(Machine.here(torch.device("cpu")))
    with TemporaryDirectory() as folder:
        if options.doors:
            doors = soak_doors(options.minutes, options.seed, Path(folder))
            name, result = "soak-doors_pocket_cpu.json", doors_summary(doors)
            wrong = [*doors_violations(doors), *missed_marks(doors)]
        else:
            found = soak(options.kills, options.sessions, options.seed, Path(folder))
            name, result, wrong = "soak_pocket_cpu.json", summary(found), violations(found)
    print(json.dumps(result, indent=1))
    write_whole(options.output or RESULTS / name, json.dumps({"machine": machine, **result}, indent=1) + "\n")
    for violation in wrong:
        print(f"WRONG: {violation}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

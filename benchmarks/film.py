"""Memory and speed of `longtake generate` over a long film.

    python -m benchmarks.film --minutes 10 --size 32x48
    python -m benchmarks.film --minutes 1 --size 96x160 --threads 2 --json benchmarks/results/film_pocket_cpu.json

The command runs in a process of its own, whose resident memory is noted at every block it reports.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import FRAMES_PER_SECOND
from serving.media.whole_file import write_whole

CUE_EVERY_SECONDS = 20

WARM_UP_BLOCKS = 50

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class LongFilm:
    """A film that was made: its frames, their rate, and resident bytes after each block."""

    frames: int
    frames_per_second: float
    resident_bytes: Sequence[int]

    @property
    def early_bytes(self) -> float:
        """The median of the tenth of the film after the warm-up."""
        return median(self.resident_bytes[WARM_UP_BLOCKS:][: self._tenth])

    @property
    def late_bytes(self) -> float:
        """The median of its last tenth."""
        return median(self.resident_bytes[-self._tenth :])

    @property
    def _tenth(self) -> int:
        return max(1, len(self.resident_bytes) // 10)


def make(minutes: float, size: str, threads: int, folder: Path) -> LongFilm:
    """Make a film of a cue every twenty seconds, and watch the process."""
    timeline = folder / "film.txt"
    seconds = minutes * 60
    prompts = [f"a red balloon over the hills, take {i}" for i in range(round(seconds / CUE_EVERY_SECONDS))]
    timeline.write_text("\n".join(prompts))
    command = [
        sys.executable, "-m", "serving.cli.main", "generate", str(timeline), "-o", str(folder / "film.mp4"),
        "--seconds", str(seconds), "--size", size, "--threads", str(threads), "--sheet", str(folder / "film.png"),
    ]  # fmt: skip
    resident, rate = [], 0.0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.match(r"block .* ([0-9.]+) frames/s", line):
                resident.append(_resident_bytes(process.pid))
                rate = float(match[1])
    if process.returncode != 0:
        raise RuntimeError(f"longtake generate ended with {process.returncode}")
    facts = json.loads((folder / "film.json").read_text())
    return LongFilm(facts["frames_made"], rate, resident)


def _resident_bytes(pid: int) -> int:
    """Memory of a process that is its own: pages of mapped files can be dropped at any time."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--size", default="32x48")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "film_cpu.json")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        film = make(options.minutes, options.size, options.threads, Path(folder))
    early, late, most = (b / MEGABYTE for b in (film.early_bytes, film.late_bytes, max(film.resident_bytes)))
    print(f"{film.frames} frames, {film.frames / FRAMES_PER_SECOND:.0f} s; {film.frames_per_second:.0f} a second")
    print(f"own memory: {early:.1f} MiB early, {late:.1f} late, {most:.1f} at most")
    document = {
        "machine": asdict(Machine.here(torch.device("cpu"))),
        "size": options.size,
        "threads": options.threads,
        "frames": film.frames,
        "frames_per_second": film.frames_per_second,
        "early_bytes": film.early_bytes,
        "late_bytes": film.late_bytes,
        "resident_bytes_every_10": list(film.resident_bytes[::10]),
    }
    write_whole(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Continue a snapshot in a process of its own: `python -m tests.engines.streaming.continue_snapshot JOB.json`.

The job names a preset, a snapshot file, prompt switches and a number of blocks; the latents and pictures made are
written to the job's output file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engines.config.presets import preset
from engines.loading.model import Model
from engines.streaming.snapshot import restore
from engines.text.prompt import Prompt
from tests.support.generators import generator_for
from tests.support.rollouts import roll_pictures


def main(job_file: str) -> None:
    """Run the job."""
    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text())
    model = Model.random(preset(job["preset"]), seed=1)
    generator = generator_for(model)
    restored = restore(generator, Path(job["snapshot"]).read_bytes())
    rows = load_file(job["prompts"])
    switches = {int(block): Prompt(name, rows[name]) for block, name in job["switches"].items()}
    latents, pictures = roll_pictures(generator, restored.stream, job["blocks"], switches)
    save_file({"latents": latents, "pictures": pictures}, job["output"], {"kind": restored.kind})


if __name__ == "__main__":
    main(sys.argv[1])

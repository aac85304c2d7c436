"""Check recordings: `python -m tests.reference FILE.safetensors ... [--save-latents FOLDER]`.

They are of LongLive and of StreamDiffusionV2, and hold weights, noise and prompts, and what the published
implementation made of them. Everything is generated again from the recorded noise, free-running, by the generator
that serves; nothing about a file is built in, its options are read from the JSON beside it. Exits 1 if a
difference is above its bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from engines.errors import EngineError
from tests.reference.findings import Finding
from tests.reference.recording import Recording
from tests.reference.rollout import ROLLOUT_BOUND, TappedTransformer, latent_findings, roll_out
from tests.reference.text_encoder import check_text_encoder
from tests.reference.vae import check_vae
from tests.reference.video import check_video


class Result(NamedTuple):
    """What was found in one recording, and the latents [B, frames, channels, h/8, w/8] made from it."""

    findings: list[Finding]
    latents: Tensor


@torch.inference_mode()
def check(recording: Recording) -> Result:
    """Generate the recorded clip again and compare all that was recorded of it."""
    if "sink_threshold" in recording.options:
        return Result(*check_video(recording))
    transformer = TappedTransformer(recording.transformer(), recording).to(recording.dtype)
    transformer.load_state_dict(recording.weights("model."))
    latents = roll_out(recording, transformer)
    bound = ROLLOUT_BOUND if recording.dtype == torch.float32 else None
    findings = transformer.differences.findings(bound)
    findings += latent_findings(latents, recording["latents"], bound)
    missed = len(recording.facts["calls"]) - transformer.calls
    findings.append(Finding("calls not made", missed, 0.0, len(recording.facts["calls"])))
    if "vae.z" in recording:
        findings += check_vae(recording)
    if "t5.out" in recording:
        findings += check_text_encoder(recording)
    return Result(findings, latents)


def main(arguments: Sequence[str]) -> int:
    """Check the files named; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description=__doc__)
    parser.add_argument("recordings", nargs="+", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--save-latents", type=Path, metavar="FOLDER", help="write NAME.safetensors there")
    options = parser.parse_args(arguments)
    kept = [_check_file(path, options.save_latents) for path in options.recordings]
    return 0 if all(kept) else 1


def _check_file(path: Path, save_latents: Path | None) -> bool:
    """Check one file and print what was found; whether all bounds are kept."""
    print(path.stem)
    try:
        result = check(Recording(path))
    except (EngineError, OSError, SafetensorError, KeyError, RuntimeError) as error:
        print(f"  cannot be checked: {error!r}  MISS")
        return False
    print(*result.findings, sep="\n", flush=True)
    if save_latents is not None:
        save_latents.mkdir(parents=True, exist_ok=True)
        save_file({"latents": result.latents.contiguous()}, save_latents / path.name)
    return all(finding.kept for finding in result.findings)

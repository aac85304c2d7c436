"""What a model's autoencoder alone makes of rendered clips: no text, no denoiser.

    python -m benchmarks.reconstruction
    python -m benchmarks.reconstruction --clips 100 --threads 2

Clips are fresh, of trained and held-out combinations alike. The judge reads each as it was rendered and as it
comes back; PSNR, edges and the change into each of a latent frame's four pictures are taken beside the rendered
clip. A sheet shows pairs: rendered, and below it what came back.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.judging.casting import prompt_role
from benchmarks.judging.footage import as_bytes
from benchmarks.judging.judge import CLIP_FRAMES, TrainedJudge, Verdict
from benchmarks.judging.plot import Sheet
from benchmarks.judging.smoothness import Beside, beside, joined, summary
from benchmarks.measure.intervals import Share
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import pixel_frames
from engines.config.presets import PRESETS
from engines.loading.fingerprint import fingerprint
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Weather
from engines.vae.protocol import StreamingVAE
from serving.media.contact_sheet import Still
from serving.media.whole_file import write_whole
from serving.weights.catalog import models_folder
from serving.weights.loader import open_model

FIRST_CLIP = 500_000
"""Number of the first clip: none of them belongs to the prompts of `benchmarks.fidelity`."""

LATENT_FRAMES = 13

TOGETHER = 8

SPLITS: tuple[tuple[int, ...], ...] = ((1,) * LATENT_FRAMES, (3, 1, 5, 4), (1, 12))
"""Ways to decode the first clip in pieces, all of which must give the same pictures."""

PAIRS, COLUMNS = 16, 4


@dataclass(frozen=True)
class Outcome:
    """Of one clip: what the judge read before and after, how the two compare, and the last picture of each."""

    clip: Clip
    rendered: Verdict
    returned: Verdict
    beside: Beside
    pictures: tuple[Tensor, Tensor]


@torch.inference_mode()
def outcomes(
    codec: StreamingVAE, judge: TrainedJudge, world: Renderer, clips: Sequence[Clip]
) -> Iterator[Outcome]:
    """Send `clips` through the autoencoder, a few at a time."""
    for start in range(0, len(clips), TOGETHER):
        some = clips[start : start + TOGETHER]
        true = world.render(some, [0] * len(some), pixel_frames(LATENT_FRAMES))
        latents = codec.encode(true, codec.start_encoding()).latents
        seen = codec.decode(latents, codec.start_decoding()).frames
        before, after = (judge.judge(pictures[:, -CLIP_FRAMES:]) for pictures in (true, seen))
        compared = beside(seen, true)
        stills = as_bytes(true[:, -1:]).squeeze(1), as_bytes(seen[:, -1:]).squeeze(1)
        for i, clip in enumerate(some):
            each = Beside(*(values[i : i + 1] for values in compared))
            yield Outcome(clip, before[i], after[i], each, (stills[0][i], stills[1][i]))


@torch.inference_mode()
def largest_difference_by_split(codec: StreamingVAE, world: Renderer, clip: Clip) -> float:
    """Of pictures decoded in pieces from those decoded at once, on a scale of 0 to 1."""
    true = world.render([clip], [0], pixel_frames(LATENT_FRAMES))
    latents = codec.encode(true, codec.start_encoding()).latents
    whole, worst = codec.decode(latents, codec.start_decoding()).frames, 0.0
    for split in SPLITS:
        cache, pieces = codec.start_decoding(), []
        for piece in latents.split(split, dim=1):
            frames, cache = codec.decode(piece, cache)
            pieces.append(frames)
        worst = max(worst, float((torch.cat(pieces, dim=1) - whole).abs().max()))
    return worst


def as_json(found: Sequence[Outcome]) -> dict[str, object]:
    """Adherence as rendered and as returned, and the comparison of pictures, by weather and in all."""

    def share(name: str, *, returned: bool) -> dict[str, object]:
        return dict(
            Share.of(
                (one.returned if returned else one.rendered).shows(one.clip.scene, name) for one in found
            ).as_json()
        )

    groups = {"all": list(found)} | {
        str(weather): [one for one in found if one.clip.scene.weather is weather] for weather in Weather
    }
    return {
        "adherence": {
            "rendered": {name: share(name, returned=False) for name in ATTRIBUTES},
            "returned": {name: share(name, returned=True) for name in ATTRIBUTES},
        },
        "pictures": {
            name: summary(joined([one.beside for one in group])) for name, group in groups.items() if group
        },
    }


def sheet(found: Sequence[Outcome]) -> Sheet:
    """Rows of rendered pictures, each above a row of what came back."""
    stills: list[Still] = []
    for start in range(0, min(PAIRS, len(found)), COLUMNS):
        row = found[start : start + COLUMNS]
        for side, verdicts in ((0, [one.rendered for one in row]), (1, [one.returned for one in row])):
            for one, verdict in zip(row, verdicts, strict=True):
                wrong = ", ".join(verdict.wrong(one.clip.scene).values())
                told = " ".join(str(getattr(one.clip.scene, name)) for name in ATTRIBUTES)
                name = "returned" if side else "rendered"
                stills.append(
                    Still(pixel_frames(LATENT_FRAMES) - 1, f"{name}: {wrong or told}", one.pictures[side])
                )
    return Sheet(stills)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. By default a run takes about five minutes on two cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(PRESETS), default="pocket")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    device, started = torch.device("cpu"), time.monotonic()
    model = open_model(options.model, models_folder(options.models_dir), device, torch.float32).model
    codec, judge, world = model.vae, TrainedJudge.load(device), Renderer(device=device)
    assert isinstance(codec, nn.Module)
    roles = [prompt_role(FIRST_CLIP + number) for number in range(options.clips)]
    clips = [Clip(role.cue.scene, role.cue.seed) for role in roles]
    found = list(outcomes(codec, judge, world, clips))
    document = {
        "model": model.config.name,
        "weights": fingerprint(codec),
        "judge": fingerprint(judge.network),
        "machine": asdict(Machine.here(device)),
        "largest_difference_by_split": largest_difference_by_split(codec, world, clips[0]),
        "seconds": round(time.monotonic() - started, 1),
        **as_json(found),
    }
    stem = options.results / f"reconstruction_{model.config.name}_cpu"
    write_whole(stem.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    sheet(found).write(stem.with_name(f"{stem.name}_sheet.png"))
    print(json.dumps(as_json(found), indent=1), f"{stem}.json", sep="\n")


if __name__ == "__main__":
    main()

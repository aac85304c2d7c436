"""Trains the judge on rendered clips, and measures it on others.

    python -m benchmarks.train_judge
    python -m benchmarks.train_judge --only-measure

About a quarter of an hour on a core of its own. Nothing that a model has generated is ever shown to it; half of
the clips are blurred, noisy or off in color, as a decoder may leave them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.judging.footage import rendered_pictures
from benchmarks.judging.frame_statistics import Bounds, Look, looks
from benchmarks.judging.judge import APPEARANCE, WEIGHTS, Judge, JudgeConfig, TrainedJudge, small
from benchmarks.measure.intervals import Share
from benchmarks.measure.machine import Machine
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Facing, Scene, combinations

TRAINING_SEEDS = range(1_600_000_000, 1_700_000_000)
TEST_SEEDS = range(1_700_000_000, 1_800_000_000)
"""Of clips: the pocket model and its measurements keep to others."""

LATEST_START = 12_000
"""Frames after which a window begins at the latest: twelve and a half minutes."""

SETTLED = (24, 240)
"""Frames between a switch and a window that shows it settled, at least and at most."""

SWITCHED_SHARE = 0.2
EARLY_SHARE = 0.2
EARLY_START = 48

POOL = 3_072
FRESH = 6
"""Clips rendered per step; the others of its batch come from the `POOL` rendered last."""

BATCH = 24
REPORT_EVERY = 50
PEAK_RATE = 2e-3
WEIGHT_DECAY = 2e-2
PICTURE_WEIGHT = 0.5
"""Of the loss on single pictures, beside that on whole clips."""

BLUR_PX = 1.0
NOISE = 0.04
GAIN = 0.06
OFFSET = 0.03
"""Most of each corruption: standard deviation of the blur in the judge's pixels, the others on the scale 0..1."""


class Window(NamedTuple):
    """A piece of a clip, from `first_frame` on, in which `shown` is to be seen."""

    clip: Clip
    first_frame: int
    shown: Scene


class Clips:
    """Draws windows: every combination alike, early, late and after a switch; their seeds are counted through."""

    def __init__(self, seeds: range, seed: int) -> None:
        self._seeds = iter(seeds)
        self._scenes = combinations()
        self._random = np.random.default_rng([seed, seeds.start])

    def draw(self) -> Window:
        """The next one."""
        random, scene = self._random, self._scene()
        clip = Clip(scene, next(self._seeds))
        first = int(random.integers(EARLY_START if random.random() < EARLY_SHARE else LATEST_START))
        if random.random() >= SWITCHED_SHARE:
            return Window(clip, first, scene)
        after, settled = self._changed(scene), int(random.integers(*SETTLED))
        return Window(replace(clip, after=after, switch_frame=first), first + settled, after)

    def _scene(self) -> Scene:
        scene = self._scenes[self._random.integers(len(self._scenes))]
        return replace(scene, facing=list(Facing)[self._random.integers(len(Facing))])

    def _changed(self, scene: Scene) -> Scene:
        """`scene` with some attributes of another."""
        other = self._scene()
        names = self._random.choice(list(ATTRIBUTES), size=self._random.integers(1, 4), replace=False)
        return replace(scene, **{str(name): getattr(other, str(name)) for name in names})


def render(world: Renderer, windows: Sequence[Window]) -> Tensor:
    """What the judge looks at in `windows`: [B, PICTURES, 3, height, width]."""
    return rendered_pictures(world, [w.clip for w in windows], [w.first_frame for w in windows])


def labels(windows: Sequence[Window]) -> Tensor:
    """[B, attributes]: the number of each value in its enum."""
    rows = [[list(kind).index(getattr(w.shown, name)) for name, kind in ATTRIBUTES.items()] for w in windows]
    return torch.tensor(rows)


def corrupted(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Half of the clips [B, T, 3, h, w] blurred, noisy and off in color."""
    batch = pictures.shape[0]

    def spread(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=random)

    blurred = torch.stack([_blurred(clip, float(s)) for clip, s in zip(pictures, BLUR_PX * spread(), strict=True)])
    shifted = blurred * (1 + GAIN * (2 * spread(1, 3, 1, 1) - 1)) + OFFSET * (2 * spread(1, 3, 1, 1) - 1)
    noise = torch.randn(pictures.shape, generator=random) * NOISE * spread(1, 1, 1, 1)
    return torch.where(spread(1, 1, 1, 1) < 0.5, (shifted + noise).clamp(0, 1), pictures)


def _blurred(clip: Tensor, deviation_px: float) -> Tensor:
    """A Gaussian of five taps along both axes."""
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / max(deviation_px, 1e-3)).square())
    taps = (taps / taps.sum()).expand(3, 1, 1, 5)
    across = F.conv2d(F.pad(clip, (2, 2, 0, 0), mode="replicate"), taps, groups=3)
    return F.conv2d(F.pad(across, (0, 0, 2, 2), mode="replicate"), taps.transpose(2, 3), groups=3)


class Pool:
    """The clips rendered last, as small pictures of 8 bits, to be drawn from more than once."""

    def __init__(self, clips: Clips, world: Renderer) -> None:
        self._clips, self._world = clips, world
        self._decoder: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._rendered = 0

    def batch(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Small pictures [BATCH, T, 3, h, w] and labels [BATCH, attributes]: `FRESH` new ones, the rest old."""
        fresh = self._render_fresh()
        old = random.integers(len(self._decoder), size=BATCH - len(fresh)).tolist()
        chosen = [*fresh, *old]
        pictures = torch.stack([self._decoder[i] for i in chosen]).float() / 255
        return pictures, torch.stack([self._labels[i] for i in chosen])

    def _render_fresh(self) -> list[int]:
        windows = [self._clips.draw() for _ in range(FRESH)]
        pictures = small(render(self._world, windows)).mul(255).round().to(torch.uint8)
        slots = []
        for picture, label in zip(pictures, labels(windows), strict=True):
            slot = self._rendered % POOL
            self._decoder[slot : slot + 1], self._labels[slot : slot + 1] = [picture], [label]
            self._rendered += 1
            slots.append(slot)
        return slots


def loss_of(judge: Judge, pictures: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy of clips and of single pictures, the mean over the attributes."""
    logits = judge(pictures)
    columns = dict(zip(ATTRIBUTES, truth.unbind(dim=1), strict=True))
    whole = [F.cross_entropy(logits.clips[name], column) for name, column in columns.items()]
    count = pictures.shape[1]
    single = [
        F.cross_entropy(logits.pictures[name].flatten(0, 1), columns[name].repeat_interleave(count))
        for name in APPEARANCE
    ]
    return torch.stack(whole).mean() + PICTURE_WEIGHT * torch.stack(single).mean()


def train(judge: Judge, world: Renderer, steps: int, seed: int, report: Callable[[int, float], None]) -> None:
    """Train for `steps` batches; `report` is told the loss of each."""
    pool, random = Pool(Clips(TRAINING_SEEDS, seed), world), np.random.default_rng(seed)
    corruption = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    judge.train()
    for step in range(steps):
        pictures, truth = pool.batch(random)
        loss = loss_of(judge, corrupted(pictures, corruption), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        report(step, loss.item())
    judge.eval()


@dataclass(frozen=True)
class Accuracy:
    """How often the judge was right on rendered clips, and the looks of those."""

    clean: dict[str, Share]
    corrupted: dict[str, Share]
    switched: dict[str, Share]
    pictures: dict[str, Share]
    looks: Sequence[Look]


def accuracy(judge: Judge, world: Renderer, clips: int, seed: int) -> Accuracy:
    """Measure on `clips` fresh windows: as they are, corrupted, those after a switch, and picture by picture."""
    drawn, corruption = Clips(TEST_SEEDS, seed), torch.Generator().manual_seed(seed)
    right: dict[str, list[Tensor]] = {"clean": [], "corrupted": [], "pictures": []}
    switched: list[bool] = []
    seen: list[Look] = []
    for windows in _batches([drawn.draw() for _ in range(clips)]):
        pictures, truth = render(world, windows), labels(windows)
        seen += looks(pictures)
        pictures = small(pictures)
        switched += [w.clip.after is not None for w in windows]
        right["clean"].append(_right(judge, pictures, truth))
        right["corrupted"].append(_right(judge, corrupted(pictures, corruption), truth))
        right["pictures"].append(_right_pictures(judge, pictures, truth))
    rows = {name: torch.cat(parts) for name, parts in right.items()}
    return Accuracy(
        _shares(rows["clean"], tuple(ATTRIBUTES)),
        _shares(rows["corrupted"], tuple(ATTRIBUTES)),
        _shares(rows["clean"][torch.tensor(switched)], tuple(ATTRIBUTES)),
        _shares(rows["pictures"], APPEARANCE),
        seen,
    )


def _batches(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    return (windows[start : start + BATCH] for start in range(0, len(windows), BATCH))


@torch.inference_mode()
def _right(judge: Judge, pictures: Tensor, truth: Tensor) -> Tensor:
    """[B, attributes]: 1 where a clip's reading is right."""
    read = torch.stack([logits.argmax(dim=-1) for logits in judge(pictures).clips.values()], dim=1)
    return (read == truth).float()


@torch.inference_mode()
def _right_pictures(judge: Judge, pictures: Tensor, truth: Tensor) -> Tensor:
    """[B, attributes of appearance]: the part of a clip's pictures that are read right."""
    columns = dict(zip(ATTRIBUTES, truth.unbind(dim=1), strict=True))
    read = {name: logits.argmax(dim=-1) for name, logits in judge(pictures).pictures.items()}
    return torch.stack([(read[name] == columns[name][:, None]).float().mean(dim=1) for name in read], dim=1)


def _shares(rows: Tensor, names: Sequence[str]) -> dict[str, Share]:
    return {name: Share.of(column.tolist()) for name, column in zip(names, rows.T, strict=True)}


def trained(steps: int, seed: int) -> tuple[Judge, dict[str, object]]:
    """A new judge, and how it was trained."""
    torch.manual_seed(seed)
    judge, losses, started = Judge(JudgeConfig()), list[float](), time.monotonic()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}, {seconds:.0f} s, loss {np.mean(losses[-REPORT_EVERY:]):.4f}", flush=True)

    train(judge, Renderer(), steps, seed, report)
    starts = range(0, len(losses), REPORT_EVERY)
    return judge, {
        "steps": steps, "batch": BATCH, "fresh": FRESH, "seed": seed,
        "minutes": round((time.monotonic() - started) / 60, 1),
        f"loss_every_{REPORT_EVERY}": [round(float(np.mean(losses[i : i + REPORT_EVERY])), 4) for i in starts],
    }  # fmt: skip


def main() -> None:
    """Train, measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_200)
    parser.add_argument("--test-clips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS, metavar="FILE")
    parser.add_argument("--only-measure", action="store_true", help="the judge in --out, as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only_measure:
        kept = TrainedJudge.load(weights=options.out)
        judge, training = kept.network, kept.facts["training"]
    else:
        judge, training = trained(options.steps, options.seed)
    found = accuracy(judge, Renderer(), options.test_clips, options.seed)
    machine = asdict(Machine.here(torch.device("cpu")))
    facts = {"accuracy": accuracy_json(found), "training": training, "machine": machine}
    TrainedJudge(judge, Bounds.of(found.looks), facts).save(options.out)
    print("\n".join(f"{name:8} {share}" for name, share in found.clean.items()))


def accuracy_json(found: Accuracy) -> dict[str, dict[str, object]]:
    """The shares, by kind of clip and attribute."""
    kinds = {"clean": found.clean, "corrupted": found.corrupted, "after_a_switch": found.switched,
             "single_pictures": found.pictures}  # fmt: skip
    return {kind: {name: share.as_json() for name, share in shares.items()} for kind, shares in kinds.items()}


if __name__ == "__main__":
    main()

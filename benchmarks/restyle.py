"""What restyling keeps of a clip and what it changes, as the judge reads it: rendered clips under a new prompt.

    python -m benchmarks.restyle
    python -m benchmarks.restyle --clips 96 --steps 850,500 750,500 --loop plain batch --window 6 12

Each prompt asks for another light or another weather; subject, color, motion, setting and the other of the two
are to stay. The subject's place is that of the scene's pose; in what came out it is looked for by outline and
color, in the light that the judge sees (`benchmarks.judging.placement`). Beside the kinds of stream stand
`asked`, the clip rendered as it is asked for, which tells the measure's own error; `autoencoder`, the input
encoded and decoded; and `no_input`, a stream of the prompt alone. A sheet shows pairs: the input, and below it
what the first kind of stream makes of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.judging.casting import FIRST_SEED
from benchmarks.judging.footage import Cue, ModelSource, as_bytes, as_floats
from benchmarks.judging.judge import CLIP_FRAMES, TrainedJudge, Verdict, sampled
from benchmarks.judging.placement import Outline, displacement, outline
from benchmarks.judging.plot import Sheet
from benchmarks.measure.intervals import Share
from benchmarks.measure.machine import RESULTS, Machine
from engines.config.geometry import pixel_frames
from engines.config.presets import POCKET_VIDEO
from engines.config.video_stream import LOOPS, VideoStreamConfig
from engines.loading.fingerprint import fingerprint
from engines.loading.model import Model
from engines.pocket.world.captions import caption
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip, Light, Motion, Scene, Weather
from engines.streaming.builder import EngineConfig
from engines.text.prompt_encoder import PromptEncoder
from engines.video.builder import build_video_engine
from serving.media.contact_sheet import Still
from serving.media.whole_file import write_whole
from serving.weights.catalog import models_folder
from serving.weights.loader import open_model

MODEL = "pocket"
"""The only model that makes what the judge can read."""

LATENT_FRAMES = 13
FRAMES = pixel_frames(LATENT_FRAMES)

RESTYLE = 3
"""Sets these clips' random numbers apart from those of `benchmarks.judging.casting`."""

PAIRS, COLUMNS = 8, 4

Restyle = Callable[["Case", Tensor], Tensor]
"""From a case and its input to what came out, both [FRAMES, 3, height, width] in 0..1."""


@dataclass(frozen=True)
class Case:
    """A clip to be restyled: what it shows, and the scene and the words of the prompt, which changes `asked`."""

    before: Scene
    after: Scene
    text: str
    seed: int

    @property
    def asked(self) -> str:
        """The attribute that the prompt changes."""
        (name,) = self.before.differing(self.after)
        return name


def case(number: int) -> Case:
    """Eight in a row have every motion with either attribute changed. Both scenes are trained combinations."""
    random = np.random.default_rng([RESTYLE, number])
    motion = list(Motion)[number // 2 % len(Motion)]
    while True:
        before, other = replace(Scene.random(random), motion=motion), Scene.random(random)
        after = replace(before, light=other.light) if number % 2 else replace(before, weather=other.weather)
        if after != before and not before.held_out and not after.held_out:
            return Case(before, after, caption(after, random), FIRST_SEED + number)


@dataclass(frozen=True)
class Outcome:
    """Of one case: what the judge read, how far the subject was off its place, and the last pictures, uint8."""

    case: Case
    verdict: Verdict
    off_place: float
    pictures: tuple[Tensor, Tensor]


def outcomes(restyle: Restyle, cases: Sequence[Case], world: Renderer, judge: TrainedJudge) -> Iterator[Outcome]:
    """Render, restyle and read each case, one by one."""
    for one in cases:
        given = world.render([Clip(one.before, one.seed)], [0], FRAMES)
        made = restyle(one, given[0])[None]
        read = made[:, -CLIP_FRAMES:]
        (verdict,) = judge.judge(read)
        place = outline(world, [Clip(_as_lit(one.after, verdict), one.seed)], FRAMES - CLIP_FRAMES, CLIP_FRAMES)
        off = displacement(sampled(read), Outline(*(sampled(part) for part in place))).mean()
        stills = as_bytes(given[:, -1:])[0, 0], as_bytes(made[:, -1:])[0, 0]
        yield Outcome(one, verdict, float(off), stills)


def _as_lit(scene: Scene, verdict: Verdict) -> Scene:
    """`scene` in the light and the weather that the judge sees, which tint the subject's color."""
    seen = verdict.reading.values
    return replace(scene, light=Light(seen["light"]), weather=Weather(seen["weather"]))


class VideoRestyle:
    """Restyles in streams of one kind."""

    def __init__(self, model: Model, prompts: PromptEncoder, config: VideoStreamConfig) -> None:
        self._engine = build_video_engine(model, EngineConfig(config))
        self._prompts = prompts
        self._config = config

    def __call__(self, case: Case, given: Tensor) -> Tensor:
        """Block by block, as they would come from a file."""
        generator, config = self._engine.generator, replace(self._config, seed=case.seed)
        stream, state = generator.open(config), self._engine.encoder.start(config)
        generator.set_prompt(stream, self._prompts.encode(case.text))
        pictures, frames = as_bytes(given[None])[0], config.blocks.pixel_frames
        made: list[Tensor] = []
        for number in range(config.blocks.blocks_of(LATENT_FRAMES)):
            taken = pictures[frames(number) : frames(number + 1)]
            inputs, state = self._engine.encoder.encode(config, taken, state)
            (block,) = generator.generate([stream], inputs)
            made += [] if block is None else [generator.decode(stream, block)]
        made += [generator.decode(stream, block) for block in generator.flush(stream)]
        generator.close(stream)
        return as_floats(torch.cat(made)[None])[0]


def references(model: Model, prompts: PromptEncoder, world: Renderer) -> dict[str, Restyle]:
    """What restyling stands beside: the best there can be, the autoencoder alone, and the prompt alone."""
    codec, source = model.vae, ModelSource(model, prompts, MODEL, streams=1)

    def asked(case: Case, given: Tensor) -> Tensor:
        return world.render([Clip(case.after, case.seed)], [0], len(given))[0]

    @torch.inference_mode()
    def autoencoder(case: Case, given: Tensor) -> Tensor:
        latents = codec.encode(given[None], codec.start_encoding()).latents
        return codec.decode(latents, codec.start_decoding()).frames[0]

    def no_input(case: Case, given: Tensor) -> Tensor:
        take, pictures = source.start([Cue(case.after, case.text, case.seed)]), list[Tensor]()
        while take.next_frame < len(given):
            pictures.append(take.next_block())
        take.close()
        return as_floats(torch.cat(pictures, dim=1)[:, : len(given)])[0]

    return {"asked": asked, "autoencoder": autoencoder, "no_input": no_input}


def kinds(options: argparse.Namespace) -> dict[str, VideoStreamConfig]:
    """The kinds of stream that the command line asks for, by what tells them apart.

    Without a noise scale the input is mixed with as much noise as the first step stands for.
    """
    found: dict[str, VideoStreamConfig] = {}
    for steps, loop, window, scale in product(
        options.steps, options.loop, options.window, options.noise_scale or [None]
    ):
        noise = steps[0] / 1000 if scale is None else scale
        name = f"steps {','.join(map(str, steps))}, {loop}, window {window}, noise {noise:g}"
        found[name] = replace(POCKET_VIDEO, steps=steps, loop=loop, window_frames=window, noise_scale=noise)
    return found


def as_json(found: Sequence[Outcome]) -> dict[str, Any]:
    """Asked attributes that are right, attributes that are kept, and the subject's distance by its motion."""

    def shown(name: str, *, asked: bool) -> dict[str, object]:
        mine = [one for one in found if (one.case.asked == name) == asked]
        return dict(Share.of(one.verdict.shows(one.case.after, name) for one in mine).as_json())

    def distance(mine: Sequence[Outcome]) -> dict[str, float]:
        values = np.array([one.off_place for one in mine])
        return {"mean": round(float(values.mean()), 4), "median": round(float(np.median(values)), 4)}

    by_motion = {str(motion): [one for one in found if one.case.before.motion is motion] for motion in Motion}
    asked = Share.of(one.verdict.shows(one.case.after, one.case.asked) for one in found)
    return {
        "asked": {"all": asked.as_json()} | {name: shown(name, asked=True) for name in ("light", "weather")},
        "kept": {name: shown(name, asked=False) for name in ATTRIBUTES},
        "collapsed": sum(one.verdict.collapse is not None for one in found),
        "off_place_by_width": {
            name: distance(mine) for name, mine in {"all": list(found), **by_motion}.items() if mine
        },
    }


def sheet(found: Sequence[Outcome]) -> Sheet:
    """Rows of inputs, each above a row of what became of them."""
    stills: list[Still] = []
    for start in range(0, min(PAIRS, len(found)), COLUMNS):
        row = found[start : start + COLUMNS]
        for one in row:
            told = " ".join(str(getattr(one.case.before, name)) for name in ATTRIBUTES)
            stills.append(Still(FRAMES - 1, told, one.pictures[0]))
        for one in row:
            wrong = ", ".join(one.verdict.wrong(one.case.after).values())
            asked = f"{one.case.asked} {getattr(one.case.after, one.case.asked)}"
            stills.append(Still(FRAMES - 1, f"{asked}{f' [{wrong}]' if wrong else ''}", one.pictures[1]))
    return Sheet(stills)


def line(name: str, numbers: Mapping[str, Any]) -> str:
    """The numbers of one kind of stream."""
    shares = {"asked": numbers["asked"]["all"], **numbers["kept"]}
    told = ", ".join(f"{key} {share['share']:.0%}" for key, share in shares.items() if share["trials"])
    off = numbers["off_place_by_width"]["all"]
    return f"{name}: {told}; off place {off['mean']:.1%} of the width, median {off['median']:.1%}"


def steps_of(text: str) -> tuple[int, ...]:
    """Of "850,500"."""
    return tuple(int(step) for step in text.split(","))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--clips", type=int, default=96, help="eight have every motion with either change")
    parser.add_argument("--steps", nargs="+", type=steps_of, default=[POCKET_VIDEO.steps], metavar="T,T")
    parser.add_argument("--loop", nargs="+", choices=LOOPS, default=[POCKET_VIDEO.loop])
    parser.add_argument("--window", nargs="+", type=int, default=[POCKET_VIDEO.window_frames], metavar="FRAMES")
    parser.add_argument("--noise-scale", nargs="+", type=float, help="default: that of the first step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    device, started = torch.device("cpu"), time.monotonic()
    opened = open_model(MODEL, models_folder(options.models_dir), device, torch.float32)
    judge, world = TrainedJudge.load(device), Renderer(device=device)
    cases = [case(number) for number in range(options.clips)]
    streams = kinds(options)
    restyles: dict[str, Restyle] = {
        name: VideoRestyle(opened.model, opened.prompts, config) for name, config in streams.items()
    }
    measured: dict[str, list[Outcome]] = {}
    for name, restyle in (restyles | references(opened.model, opened.prompts, world)).items():
        measured[name] = list(outcomes(restyle, cases, world, judge))
        print(line(name, as_json(measured[name])), flush=True)
    document = {
        "model": MODEL,
        "weights": opened.model.identity,
        "judge": fingerprint(judge.network),
        "machine": asdict(Machine.here(device)),
        "clips": options.clips,
        "seconds": round(time.monotonic() - started, 1),
        "streams": {name: asdict(config) | as_json(measured[name]) for name, config in streams.items()},
        "beside": {name: as_json(found) for name, found in measured.items() if name not in streams},
    }
    stem = options.results / f"restyle_{MODEL}_cpu"
    write_whole(stem.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    sheet(measured[next(iter(streams))]).write(stem.with_name(f"{stem.name}_sheet.png"))
    print(f"{stem}.json")


if __name__ == "__main__":
    main()

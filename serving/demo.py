"""The demonstration: a tiny model with random weights is rolled out and redirected, and comes out as a film.

The pictures are patterns without meaning, because the weights are random; the path from prompts to film is the
real one. `python -m serving.demo FOLDER` writes `demo.mp4` and `demo.png`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from engines.generator import Generator
from engines.model import Model
from engines.presets import preset
from engines.wan.prompt_encoder import PromptEncoder
from engines.wan.tokenizer import ByteTokenizer
from serving.film import FRAMES_PER_SECOND, Film
from serving.sheet import Still, write_sheet

BLOCKS = 12
PROMPTS = {
    0: "a red balloon drifts over the hills at noon",
    4: "a red balloon drifts over the hills at night",
    8: "a red balloon drifts over the hills at night, snow falls",
}


def main(folder: Path) -> None:
    """Write film and sheet to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = Model.random(preset("tiny-taehv"), seed=0)
    encoder = PromptEncoder(ByteTokenizer(model.config.text_encoder.text_len), model.text_encoder, capacity=8)
    generator = Generator(model.transformer, model.codec, slab_bytes=1 << 30)
    stream, prompt, stills = generator.open(model.config.stream), "", []
    started = time.monotonic()
    with Film(folder / "demo.mp4", stream.config.height, stream.config.width) as film:
        for block in range(BLOCKS):
            if block in PROMPTS:
                prompt = PROMPTS[block]
                generator.set_prompt(stream, encoder.encode(prompt))
            pictures = generator.decode(stream, generator.generate([stream])[0])
            stills.append(Still(film.frames, prompt, pictures[0]))
            film.append(pictures)
    seconds = time.monotonic() - started
    write_sheet(folder / "demo.png", stills)
    print(f"{film.frames} frames, {film.frames / FRAMES_PER_SECOND:.1f} s of video, made in {seconds:.1f} s")
    print(f"film:  {folder / 'demo.mp4'}\nsheet: {folder / 'demo.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

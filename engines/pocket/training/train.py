"""Train the pocket model: `python -m engines.pocket.training.train --recipe gpu --folder out`.

Stages run in order, and each goes on where an earlier run of the program left it: a program that was stopped is
simply started again. `--minutes` ends the program in time, whatever is left to do. After the last stage the
model's weights, in fp16, with their settings and loss curves, are in `<folder>/pocket`; `--publish` writes them
there from whatever has been trained so far. `--from WEIGHTS`, a folder of published weights, keeps its autoencoder
and text encoder, and trains its transformer on, from the stage `flow`.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.config.model import ModelConfig
from engines.config.networks import TAEHVConfig
from engines.config.presets import preset
from engines.loading.loader import load_model
from engines.pocket.model_files import WEIGHTS, model_files
from engines.pocket.training.dataset import Teachers
from engines.pocket.training.export import publish
from engines.pocket.training.flow_matching import FlowTraining, new_transformer, train_flow
from engines.pocket.training.recipe import RECIPES, Recipe, recipe
from engines.pocket.training.self_forcing import train_on_rollouts
from engines.pocket.training.text_encoder import train_text_encoder
from engines.pocket.training.trainer import OutOfTime, Workshop
from engines.pocket.training.vae import train_autoencoder
from engines.text.tokenizer import Tokenizer
from engines.vae.taehv import TAEHV
from engines.wan.transformer import CausalTransformer

logger = logging.getLogger(__name__)

TRANSFORMER_SEED = 5


@dataclass(frozen=True)
class Course:
    """All stages of one model's training, in one workshop."""

    model: ModelConfig
    recipe: Recipe
    workshop: Workshop
    start: Path | None = None
    """Published weights to train on."""

    def run(self) -> None:
        """Every stage that is not done yet. Raises OutOfTime at the workshop's deadline."""
        teachers, transformer = self._begun() if self.start is None else self._published(self.start)
        transformer = self._flow("first-blocks", self.recipe.first_blocks, transformer, teachers)
        transformer = self._flow("flow", self.recipe.flow, transformer, teachers)
        train_on_rollouts(
            transformer.requires_grad_(True), teachers, self.model.stream, self.recipe.self_forcing, self.workshop
        )

    def _begun(self) -> tuple[Teachers, CausalTransformer]:
        """The teachers, and a transformer that knows nothing."""
        transformer = new_transformer(self.model.transformer, TRANSFORMER_SEED, self.workshop.device)
        return self._teachers(), transformer

    def _published(self, folder: Path) -> tuple[Teachers, CausalTransformer]:
        """The same as they are in `folder`. Raises WeightsError if they do not fit."""
        loaded = load_model(self.model, model_files(folder), self.workshop.device, torch.float32)
        model = loaded.model
        assert isinstance(model.vae, TAEHV)
        assert isinstance(model.transformer, CausalTransformer)
        text_len = self.model.transformer.text_len
        return Teachers(model.vae, model.text_encoder, loaded.tokenizer, text_len), model.transformer

    def _teachers(self) -> Teachers:
        """The autoencoder and the text encoder, trained if they are not."""
        model, workshop = self.model, self.workshop
        assert isinstance(model.vae, TAEHVConfig)
        tokenizer = Tokenizer.from_folder(WEIGHTS, model.text_encoder.text_len)
        codec = train_autoencoder(model.vae, self.recipe.autoencoder, workshop)
        text_encoder = train_text_encoder(model.text_encoder, tokenizer, self.recipe.text, workshop)
        return Teachers(codec, text_encoder, tokenizer, model.transformer.text_len)

    def _flow(
        self, stage: str, settings: FlowTraining, transformer: CausalTransformer, teachers: Teachers
    ) -> CausalTransformer:
        return train_flow(
            transformer.requires_grad_(True), teachers, self.model.stream, stage, settings, self.workshop
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    folder: Path = options.folder
    if not options.publish:
        deadline = time.monotonic() + 60 * options.minutes
        workshop = Workshop(folder, torch.device(options.device), deadline)
        try:
            Course(preset(options.model), recipe(options.recipe), workshop, options.start).run()
        except OutOfTime as pause:
            logger.info("%s", pause)
            return
    publish(folder, folder / "pocket", options.start)
    logger.info("the model is in %s", folder / "pocket")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engines.pocket.training.train", description="Train the pocket model."
    )
    parser.add_argument("--folder", type=Path, required=True, help="for weights, curves and the finished model")
    parser.add_argument("--recipe", default="gpu", help=f"one of {', '.join(RECIPES)} (default: gpu)")
    parser.add_argument("--model", default="pocket", help="a preset with a TAEHV codec (default: pocket)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--from", dest="start", type=Path, metavar="WEIGHTS", help="published weights to train on")
    parser.add_argument("--publish", action="store_true", help="only write the model from what is trained so far")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

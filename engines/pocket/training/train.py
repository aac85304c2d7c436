"""Train the pocket model: `python -m engines.pocket.training.train --recipe gpu --folder out`.

Stages run in order, and each goes on where an earlier run of the program left it: a program that was stopped is
simply started again. `--minutes` ends the program in time, whatever is left to do. After the last stage the
model's weights, in fp16, with their settings and loss curves, are in `<folder>/pocket`; `--publish` writes them
there from whatever has been trained so far. `--from WEIGHTS`, a folder of published weights, trains their
transformer on, and `--stages` names the stages to run: what they do not train stays as it is.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from engines.config.model import ModelConfig
from engines.config.networks import PatchVAEConfig
from engines.config.presets import preset
from engines.errors import ConfigError
from engines.loading.loader import load_model
from engines.pocket.model_files import WEIGHTS, model_files
from engines.pocket.training.export import publish
from engines.pocket.training.recipe import RECIPES, Recipe, recipe
from engines.pocket.training.team import Team, run_together
from engines.pocket.training.text_encoder import (
    TextReader,
    TextTraining,
    new_text_encoder,
    train_text_encoder,
)
from engines.pocket.training.trainer import OutOfTime, Workshop
from engines.pocket.training.transformer.dataset import Teachers
from engines.pocket.training.transformer.flow_matching import FlowTraining, new_transformer, train_flow
from engines.pocket.training.transformer.self_forcing import SelfForcingTraining, train_on_rollouts
from engines.pocket.training.vae import AutoencoderTraining, new_autoencoder, train_autoencoder
from engines.text.tokenizer import Tokenizer
from engines.text.umt5 import UMT5Encoder
from engines.vae.patch_vae import PatchVAE
from engines.wan.transformer import CausalTransformer

logger = logging.getLogger(__name__)

TEXT_SEED, TRANSFORMER_SEED = 2, 5

NetworkT = TypeVar("NetworkT", bound=nn.Module)
SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Course:
    """The stages of one model's training, in one workshop."""

    model: ModelConfig
    recipe: Recipe
    workshop: Workshop
    stages: tuple[str, ...]
    """Those to run; of the others the networks count as they are in the workshop's folder, if they are there."""
    start: Path | None = None
    """Published weights to train on."""

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in self.recipe.stages]
        if unknown:
            raise ConfigError(
                f"unknown stages {', '.join(unknown)}; the recipe has {', '.join(self.recipe.stages)}"
            )

    def run(self) -> None:
        """Every stage that is not done yet. Raises OutOfTime at the workshop's deadline."""
        codec, text_encoder, transformer = self._begun() if self.start is None else self._published(self.start)
        tokenizer = Tokenizer.from_folder(WEIGHTS, self.model.text_encoder.text_len)
        codec, text_encoder = self._codec(codec), self._text_encoder(text_encoder, tokenizer)
        for teacher in (codec, text_encoder):
            teacher.requires_grad_(False)
        teachers = Teachers(codec, text_encoder, tokenizer, self.model.transformer.text_len)
        self._transformer(transformer, teachers)

    def _codec(self, codec: PatchVAE) -> PatchVAE:
        def train(stage: str, network: PatchVAE, settings: AutoencoderTraining) -> PatchVAE:
            return train_autoencoder(network, stage, settings, self.workshop)

        return self._through(self.recipe.autoencoder, codec, train)

    def _text_encoder(self, encoder: UMT5Encoder, tokenizer: Tokenizer) -> UMT5Encoder:
        def train(_: str, network: TextReader, settings: TextTraining) -> TextReader:
            return train_text_encoder(network, tokenizer, settings, self.workshop)

        torch.manual_seed(TEXT_SEED)
        reader = TextReader(encoder).to(self.workshop.device)
        return self._through({"text": self.recipe.text}, reader, train).encoder

    def _transformer(self, transformer: CausalTransformer, teachers: Teachers) -> CausalTransformer:
        model, workshop = self.model, self.workshop

        def flow(stage: str, network: CausalTransformer, settings: FlowTraining) -> CausalTransformer:
            return train_flow(network, teachers, model, stage, settings, workshop)

        def rollouts(stage: str, network: CausalTransformer, settings: SelfForcingTraining) -> CausalTransformer:
            return train_on_rollouts(network, teachers, model, stage, settings, workshop)

        transformer = self._through(self.recipe.flow, transformer, flow)
        return self._through(self.recipe.rollouts, transformer, rollouts)

    def _through(
        self,
        stages: Mapping[str, SettingsT],
        network: NetworkT,
        train: Callable[[str, NetworkT, SettingsT], NetworkT],
    ) -> NetworkT:
        """`network` after some stages: trained in those to run, loaded from those that were run before."""
        for stage, settings in stages.items():
            file = self.workshop.folder / f"{stage}-average.safetensors"
            if stage in self.stages:
                network = train(stage, network.requires_grad_(True), settings)
            elif file.exists():
                network.load_state_dict(load_file(file))
        return network

    def _begun(self) -> tuple[PatchVAE, UMT5Encoder, CausalTransformer]:
        """Networks that have learned nothing; the autoencoder is a linear code."""
        model, device = self.model, self.workshop.device
        if not isinstance(model.vae, PatchVAEConfig):
            raise ConfigError(f"{model.name} has another autoencoder than the one that can be trained here")
        first = next(iter(self.recipe.autoencoder.values()))
        return (
            new_autoencoder(model.vae, first, device), new_text_encoder(model.text_encoder, TEXT_SEED).to(device),
            new_transformer(model.transformer, TRANSFORMER_SEED, device),
        )  # fmt: skip

    def _published(self, folder: Path) -> tuple[PatchVAE, UMT5Encoder, CausalTransformer]:
        """The same as they are in `folder`. Raises WeightsError if they do not fit."""
        model = load_model(self.model, model_files(folder), self.workshop.device, torch.float32).model
        assert isinstance(model.vae, PatchVAE)
        return model.vae, model.text_encoder, model.transformer


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    options = _options(arguments)
    run_together(options.processes, _train, options)


def _train(team: Team, options: argparse.Namespace) -> None:
    logging.basicConfig(
        level=logging.INFO if team.leads else logging.WARNING, format="%(asctime)s %(message)s"
    )  # fmt: skip
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    folder, steps = options.folder, recipe(options.recipe)
    if not options.publish:
        workshop = Workshop(
            folder, torch.device(options.device), time.monotonic() + 60 * options.minutes, team
        )  # fmt: skip
        stages = options.stages or (steps.transformer_stages if options.start else steps.stages)
        try:
            Course(preset(options.model), steps, workshop, tuple(stages), options.start).run()
        except OutOfTime as pause:
            logger.info("%s", pause)
            return
    if team.leads:
        publish(folder, folder / "pocket", steps, options.start)
        logger.info("the model is in %s", folder / "pocket")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engines.pocket.training.train", description="Train the pocket model."
    )
    parser.add_argument("--folder", type=Path, required=True, help="for weights, curves and the finished model")
    parser.add_argument("--recipe", default="gpu", help=f"one of {', '.join(RECIPES)} (default: gpu)")
    parser.add_argument(
        "--model", default="pocket", help="a preset with an autoencoder over patches (default: pocket)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--stages",
        nargs="+",
        metavar="STAGE",
        help="to run (default: all of the recipe; with --from, those of the transformer)",
    )
    parser.add_argument("--processes", type=int, default=1, help="that share each step, on a CPU (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch in a process, on a CPU (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--from", dest="start", type=Path, metavar="WEIGHTS", help="published weights to train on")
    parser.add_argument("--publish", action="store_true", help="only write the model from what is trained so far")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

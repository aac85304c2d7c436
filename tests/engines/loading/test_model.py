from __future__ import annotations

import torch

from engines.config.presets import preset
from engines.loading.fingerprint import fingerprint
from engines.loading.model import Model


def test_random_weights_follow_from_their_seed_alone() -> None:
    torch.manual_seed(5)
    first = Model.random(preset("tiny-taehv"), seed=3)
    torch.rand(7)
    second = Model.random(preset("tiny-taehv"), seed=3)
    assert fingerprint(first.transformer) == fingerprint(second.transformer)
    assert fingerprint(first.transformer) != fingerprint(Model.random(preset("tiny-taehv"), seed=4).transformer)


def test_making_a_random_model_leaves_the_process_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    Model.random(preset("tiny-taehv"), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_dtype_is_part_of_the_fingerprint() -> None:
    model = Model.random(preset("tiny-taehv"), seed=3)
    fp32 = fingerprint(model.transformer)
    assert fingerprint(model.transformer.bfloat16()) != fp32

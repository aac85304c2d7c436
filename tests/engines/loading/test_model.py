from __future__ import annotations

import torch

from engines.config.presets import preset
from engines.loading.fingerprint import fingerprint, weights_hash
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


def test_a_hash_of_all_weights_tells_the_last_value_apart_which_a_fingerprint_does_not() -> None:
    first, second = (Model.random(preset("tiny-taehv"), seed=3).vae for _ in range(2))
    assert weights_hash(first) == weights_hash(second)
    last = max(second.parameters(), key=lambda parameter: parameter.numel())
    last.data[(-1,) * last.dim()] += 1
    assert fingerprint(first) == fingerprint(second)
    assert weights_hash(first) != weights_hash(second)


def test_the_dtype_is_part_of_the_fingerprint() -> None:
    model = Model.random(preset("tiny-taehv"), seed=3)
    fp32 = fingerprint(model.transformer)
    assert fingerprint(model.transformer.bfloat16()) != fp32

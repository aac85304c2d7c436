from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import PromptError
from engines.loading.model import Model
from engines.runner.prompt_encoding import encode_prompt
from engines.text.blending import MAX_TEXT_CHARACTERS, blend, interpolate
from engines.text.prompt import Prompt

X = Prompt("east", torch.tensor([[2.0, 0.0, 0.0]]))
Y = Prompt("north", torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.0, 1.0]]))


def random_prompt(rows: int, seed: int) -> Prompt:
    return Prompt(f"prompt {seed}", torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)))


def test_a_blend_points_to_the_weighted_mean_of_the_padded_embeddings() -> None:
    mean = torch.tensor([[0.7 * 2, 0.3 * 4, 0.0], [0.0, 0.0, 0.3]])
    rows = blend([(X, 0.7), (Y, 0.3)]).rows
    torch.testing.assert_close(rows / rows.norm(), mean / mean.norm())


def test_a_blend_has_the_weighted_mean_of_the_norms() -> None:
    rows = blend([(X, 0.7), (Y, 0.3)]).rows
    assert float(rows.norm()) == pytest.approx(0.7 * 2 + 0.3 * math.sqrt(17))


def test_only_the_proportions_of_the_weights_matter() -> None:
    hundreds, parts = blend([(X, 70), (Y, 30)]), blend([(X, 0.7), (Y, 0.3)])
    torch.testing.assert_close(hundreds.rows, parts.rows)
    assert hundreds.text == parts.text == "east (0.7) + north (0.3)"


@pytest.mark.parametrize("weight", [5e-324, 1.7e308])
def test_weights_may_be_as_small_and_as_large_as_floats_are(weight: float) -> None:
    torch.testing.assert_close(blend([(X, weight), (Y, weight)]).rows, blend([(X, 1), (Y, 1)]).rows)


def test_a_prompt_with_all_of_the_weight_is_left_as_it_is() -> None:
    assert blend([(X, 0.0), (Y, 3.0)]) is Y
    assert blend([(X, 100)]) is X


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "of 0 blended prompts none has"),
        ([0.0, 0.0], "of 2 blended prompts none has a positive weight"),
        ([1.0, -0.5], "the weight -0.5 of 'north' is not"),
        ([math.nan, 1.0], "the weight nan of 'east' is not"),
        ([math.inf, 1.0], "the weight inf of 'east' is not"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        blend(list(zip([X, Y], weights, strict=False)))


def test_opposite_prompts_blend_to_almost_nothing_rather_than_to_noise() -> None:
    opposite = Prompt("west", -X.rows)
    assert float(blend([(X, 1), (opposite, 1)]).rows.norm()) == 0


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_way_begins_at_one_prompt_and_ends_at_the_other(method: Literal["linear", "slerp"]) -> None:
    assert interpolate(X, Y, 0.0, method) is X
    assert interpolate(X, Y, 1.0, method) is Y


def test_the_linear_way_is_straight() -> None:
    expected = torch.tensor([[1.5, 1.0, 0.0], [0.0, 0.0, 0.25]])
    torch.testing.assert_close(interpolate(X, Y, 0.25, "linear").rows, expected)


def test_slerp_turns_at_an_even_pace_and_its_norm_goes_straight() -> None:
    row = interpolate(X, Y, 1 / 3, "slerp").rows[0]
    assert math.atan2(float(row[1]), float(row[0])) == pytest.approx(math.pi / 6)
    assert float(row.norm()) == pytest.approx(2 + 2 / 3)


def test_slerp_goes_straight_where_a_row_is_missing_on_one_side() -> None:
    torch.testing.assert_close(interpolate(X, Y, 0.25, "slerp").rows[1], torch.tensor([0.0, 0.0, 0.25]))


@pytest.mark.parametrize("factor", [3.0, -1.0], ids=["parallel", "opposite"])
def test_slerp_goes_straight_between_rows_without_an_angle(factor: float) -> None:
    rows = interpolate(X, Prompt("x", X.rows * factor), 0.5, "slerp").rows
    torch.testing.assert_close(rows, X.rows * (1 + factor) / 2)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)  # fmt: skip
def test_no_row_of_slerp_is_shorter_than_the_shorter_of_its_ends(
    a: int, b: int, fraction: float, dtype: torch.dtype, seed: int
) -> None:
    start, end = (Prompt(p.text, p.rows.to(dtype)) for p in (random_prompt(a, seed), random_prompt(b, seed + 1)))
    rows = interpolate(start, end, fraction, "slerp").rows
    both = min(a, b)
    shorter = torch.minimum(start.rows[:both].float().norm(dim=1), end.rows[:both].float().norm(dim=1))
    assert rows.dtype == dtype
    assert bool((rows[:both].float().norm(dim=1) >= shorter * 0.99).all())


def test_slerp_is_continuous_where_it_gives_way_to_the_straight_line() -> None:
    angles = (0.99e-3, 1.01e-3)
    ends = [Prompt("b", torch.tensor([[2 * math.cos(a), 2 * math.sin(a), 0.0]])) for a in angles]
    below, above = (interpolate(X, end, 0.5, "slerp").rows for end in ends)
    torch.testing.assert_close(below, above, atol=3e-5, rtol=0)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_outside_the_way_is_refused(fraction: float) -> None:
    with pytest.raises(PromptError, match=r"is outside 0\.\.1"):
        interpolate(X, Y, fraction)


def test_prompts_of_different_models_do_not_mix() -> None:
    with pytest.raises(PromptError, match=r"rows of 3 channels .* do not mix with rows of 8"):
        interpolate(X, random_prompt(2, 0), 0.5)
    with pytest.raises(PromptError, match=r"in torch.float32 do not mix .* in torch.float64"):
        blend([(X, 1), (Prompt("x", X.rows.double()), 1)])


def test_the_text_of_a_mixture_says_its_parts() -> None:
    assert interpolate(X, Y, 0.25).text == "east (0.75) + north (0.25)"


def test_the_text_of_a_mixture_of_mixtures_has_an_end_and_keeps_what_came_last() -> None:
    prompt = X
    for number in range(200):
        prompt = interpolate(prompt, Prompt(f"cue {number} " + "of usual length, " * 20, Y.rows), 0.5)
        assert len(prompt.text) <= MAX_TEXT_CHARACTERS
        assert f"cue {number} " in prompt.text


def test_the_model_reads_a_blend_as_the_padded_mean_that_it_is(model: Model, prompts: list[Prompt]) -> None:
    """Padding is implied in both, so the same mixture of full-length embeddings gives the same memory."""
    length = model.config.transformer.text_len
    full = [Prompt(p.text, torch.nn.functional.pad(p.rows, (0, 0, 0, length - len(p.rows)))) for p in prompts[:2]]
    weights = (0.6, 0.4)
    short = blend(list(zip(prompts[:2], weights, strict=True)))
    long = blend(list(zip(full, weights, strict=True)))
    with torch.inference_mode():
        ours, theirs = (encode_prompt(model.transformer, prompt, folded=True) for prompt in (short, long))
    torch.testing.assert_close(ours.keys[:, : len(short.rows)], theirs.keys[:, : len(short.rows)])
    torch.testing.assert_close(ours.values[:, -1], theirs.values[:, -1])

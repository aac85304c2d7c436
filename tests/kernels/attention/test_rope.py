from __future__ import annotations

import math

import pytest
import torch

from kernels.attention.rope import apply_rope, frame_freqs, frame_pairs, join_freqs, spatial_freqs


def freqs_cis(frames: list[int], rows: int, columns: int, head_dim: int) -> torch.Tensor:
    return join_freqs(frame_freqs(frames, head_dim), spatial_freqs(rows, columns, head_dim))


def test_a_pair_turns_by_its_axis_position_and_frequency() -> None:
    turns = freqs_cis([5], 2, 3, 24)
    of_frame, axis_pairs = 4, 4
    assert frame_pairs(24) == of_frame
    token = 1 * 3 + 2
    expected = [
        position * 10000 ** (-pair / pairs)
        for position, pairs in ((5, of_frame), (1, axis_pairs), (2, axis_pairs))
        for pair in range(pairs)
    ]
    wanted = torch.polar(torch.ones(12), torch.tensor(expected))
    torch.testing.assert_close(turns[token], wanted)


def test_scores_depend_on_the_distance_between_frames_alone() -> None:
    q, k = torch.randn(2, 4, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(at: int) -> torch.Tensor:
        return (apply_rope(q, freqs_cis([at + 7], 2, 2, 16)) * apply_rope(k, freqs_cis([at], 2, 2, 16))).sum(-1)

    torch.testing.assert_close(score(0), score(500), atol=2e-5, rtol=0)


def test_a_frame_number_in_the_millions_keeps_its_precision() -> None:
    frame = 123_456_789
    turn = frame_freqs([frame], 6)[0, 0]
    assert turn.real.item() == pytest.approx(math.cos(frame), abs=1e-6)


def test_turning_back_gives_the_input() -> None:
    turns = freqs_cis([3, 4], 2, 3, 16)
    x = torch.randn(2, 12, 2, 16)
    torch.testing.assert_close(apply_rope(apply_rope(x, turns), turns.conj()), x)


def test_the_dtype_is_kept() -> None:
    assert apply_rope(torch.ones(6, 1, 8, dtype=torch.bfloat16), freqs_cis([0], 2, 3, 8)).dtype == torch.bfloat16


def test_freqs_cis_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="needs freqs_cis for 5 tokens and 4 pairs"):
        apply_rope(torch.ones(5, 1, 8), freqs_cis([0], 2, 3, 8))

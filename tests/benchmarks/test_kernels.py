"""The benchmark of kernels, as far as it runs without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.kernel_cases.case import Case, Maker, Sizes
from benchmarks.kernels import Row, all_cases, measure, unwritten_is_nan
from benchmarks.measure.counts import Work
from benchmarks.measure.timing import Samples

CPU = torch.device("cpu")


@torch.inference_mode()
def test_every_implementation_agrees_with_its_reference() -> None:
    rows = list(measure(Sizes.tiny(), CPU, torch.float32, runs=1))
    assert [f"{row.case}: {row.provider}: {row.rms_error} {row.failed}" for row in rows if not row.right] == []
    assert len({row.case for row in rows}) == len(all_cases(Sizes.tiny(), CPU, torch.float32))


def doubled(make: Maker, sets: int) -> Case:
    """An op with a right implementation, a wrong one, and one that fails."""

    def unwritten(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def failing(x: Tensor) -> Tensor:
        raise RuntimeError("no such instruction")

    providers = {"right": lambda x: x + x, "wrong": lambda x: 2.1 * x, "unwritten": unwritten, "failing": failing}
    return make.case("double", lambda: (make.randn(64),), providers, lambda x: 2 * x, 0, sets)


def test_nothing_wrong_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "all_cases", lambda *where: [partial(doubled, Maker(*where))])
    rows = {row.provider: row for row in measure(Sizes.tiny(), CPU, torch.float32, runs=2)}
    assert [name for name, row in rows.items() if row.times is not None] == ["right"]
    assert rows["failing"].failed == "RuntimeError: no such instruction"
    assert not any(rows[name].right for name in ("wrong", "unwritten", "failing"))


def test_what_is_written_in_place_is_not_held_against_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.empty(64)

    def in_place(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: place.copy_(factor * x)

    def doubled_in_place(make: Maker, sets: int) -> Case:
        return make.case("double", lambda: (make.randn(64),), {"wrong": in_place(3)}, in_place(2), 0, sets)

    monkeypatch.setattr(kernels, "all_cases", lambda *where: [partial(doubled_in_place, Maker(*where))])
    (row,) = measure(Sizes.tiny(), CPU, torch.float32, runs=2)
    assert not row.right


def test_memory_that_nobody_wrote_is_nan_within_a_check() -> None:
    with unwritten_is_nan(CPU):
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_nan_is_not_right() -> None:
    row = Row("op", "ours", Work(0, 1), 0.5, 1.0, Samples((1.0,)), None)
    assert row.right
    assert not replace(row, rms_error=float("nan")).right

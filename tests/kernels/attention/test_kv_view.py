from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.attention.kv_view import KVView, KVViewTable

CPU = torch.device("cpu")


def _lent(filled: int = 10, layers: int = 2, tokens: int = 12, heads: int = 3) -> KVView:
    keys, values = torch.randn(
        2, layers, 2, tokens // 2, heads, 8, generator=torch.Generator().manual_seed(filled)
    )
    return KVView(keys, values, filled)


def _read(address: Tensor) -> float:
    return ctypes.c_float.from_address(int(address)).value


def test_a_layer_of_a_row_lies_where_the_table_says() -> None:
    lent = _lent()
    table = KVViewTable([_lent(5), lent], CPU)
    layer_1 = table.layer_strides[1] * lent.keys.element_size()
    assert _read(table.keys[1]) == lent.keys[0, 0, 0, 0, 0]
    assert _read(table.values[1] + layer_1) == lent.values[1, 0, 0, 0, 0]


def test_lending_changes_a_row_in_place() -> None:
    table = KVViewTable([_lent(5), _lent(6)], CPU)
    before = [column.data_ptr() for column in table.columns]
    longer = replace(table.lent[1], filled=12, sink=6)
    table.lend(1, longer)
    assert table.filled.tolist() == [5, 12]
    assert table.sink.tolist() == [0, 6]
    assert table.most_filled == 12
    assert [column.data_ptr() for column in table.columns] == before


def test_what_is_attended_is_the_front_of_a_layer() -> None:
    lent = _lent(filled=7)
    keys, values, scales = lent.attended(1)
    assert torch.equal(keys, lent.keys[1].reshape(12, 3, 8)[:7])
    assert torch.equal(values, lent.values[1].reshape(12, 3, 8)[:7])
    assert scales is None


@pytest.mark.parametrize(("filled", "sink"), [(0, 0), (13, 0), (4, 5), (4, -1)])
def test_more_than_a_slab_holds_is_refused(filled: int, sink: int) -> None:
    with pytest.raises(ValueError, match=f"{sink} sink and {filled} filled tokens in a slab of 12"):
        replace(_lent(), filled=filled, sink=sink)


def test_a_slab_with_gaps_is_refused() -> None:
    lent = _lent()
    with pytest.raises(ValueError, match="contiguous"):
        replace(lent, keys=lent.keys.transpose(1, 2), values=lent.values.transpose(1, 2))


def test_int8_keys_need_scales_of_their_shape() -> None:
    lent = _lent()
    keys = lent.keys.to(torch.int8)
    with pytest.raises(ValueError, match="INT8 keys, and no others, have scales"):
        replace(lent, keys=keys)
    with pytest.raises(ValueError, match="do not fit keys"):
        replace(lent, keys=keys, key_scales=torch.ones(2, 2, 6, 3))
    scales = torch.rand(2, 3, 2, 6)
    with pytest.raises(ValueError, match=r"in torch\.float16 on cpu do not fit keys"):
        replace(lent, keys=keys, key_scales=scales.half())
    attended = replace(lent, keys=keys, key_scales=scales).attended(1)[2]
    assert attended is not None
    assert torch.equal(attended, scales[1].reshape(3, 12)[:, :10])


def test_streams_of_different_heads_are_no_batch() -> None:
    with pytest.raises(ValueError, match="same heads"):
        KVViewTable([_lent(), _lent(heads=4)], CPU)
    table = KVViewTable([_lent()], CPU)
    with pytest.raises(ValueError, match="same heads"):
        table.lend(0, _lent(heads=4))

from __future__ import annotations

import pytest
import torch

from kernels.attention.library import cudnn_attention, library_attention
from kernels.attention.window import window_attention_reference
from tests.kernels.attention.pools import DIM, HEADS, LAYER, Run, int8, pool, random, view
from tests.tolerances import assert_within

RUNS = [Run(5, 90, 7), Run(100, 24)]


@pytest.mark.parametrize("rows", [1, 2])
def test_the_library_attends_what_the_reference_does(rows: int, device: torch.device) -> None:
    kv = view(pool(RUNS), RUNS[:rows], device)
    queries = random(rows, 24, HEADS, DIM).to(device)
    got = library_attention(device)(queries, kv, LAYER)
    assert_within("window_attention", got, window_attention_reference(queries, kv, LAYER))


def test_on_cuda_bounds_are_handed_on_in_device_memory(device: torch.device) -> None:
    """Without a GPU nothing runs; but the calls, whose arguments are checked by PyTorch's schemas, can be made."""
    kv = view(pool(RUNS), RUNS, device)
    queries = random(2, 24, HEADS, DIM).to(device)
    calls = _Calls()
    with calls:
        cudnn_attention(queries[:1], view(pool(RUNS), RUNS[:1], device), LAYER)
        cudnn_attention(queries, kv, LAYER)
    (single, one), (several, two) = calls.made
    assert (single, several) == ("_cudnn_attention_forward", "_flash_attention_forward")
    assert one["cum_seq_k"].tolist() == list(RUNS[0].bounds)
    assert two["cum_seq_k"].tolist()[:2] == [run.bounds[0] for run in RUNS]
    assert two["seqused_k"].tolist() == [end - begin for begin, end in (run.bounds for run in RUNS)]


def test_what_no_library_attends_is_refused(device: torch.device) -> None:
    queries = random(2, 24, HEADS, DIM).to(device)
    planes = pool(RUNS)
    views = [view(int8(planes, keys=keys, values=not keys), RUNS, device) for keys in (True, False)]
    for kv in (*views, view(planes, RUNS, device, [0.0, 1.0])):
        with pytest.raises(ValueError, match=r"neither keys in .* nor one key for several"):
            library_attention(device)(queries, kv, LAYER)


class _Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the attention calls in it by operator and arguments, and answers them with their queries."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[str, dict[str, torch.Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function._schema.name.removeprefix("aten::")
        if not name.endswith("attention_forward"):
            return function(*args, **(kwargs or {}))
        names = [argument.name for argument in function._schema.arguments]
        self.made.append((name, dict(zip(names, args, strict=False)) | (kwargs or {})))
        returns = function._schema.returns
        return tuple(args[0].clone() if str(value.type) == "Tensor" else 0 for value in returns)

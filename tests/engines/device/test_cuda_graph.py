"""Recording a function once and replaying it: everything but the capture, which needs a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from engines.device.cuda_graph import CaptureFailed, CudaGraphCapture, CudaGraphed
from engines.device.memory_budget import typed_out_of_memory
from engines.errors import EngineError
from tests.support.fake_capture import Recordings
from tests.support.fake_cuda import install


def result(graphed: CudaGraphed, *tensors: Tensor) -> Tensor:
    """Of a function that has one."""
    made = graphed(*tensors)
    assert made is not None
    return made


@pytest.fixture
def recordings() -> Recordings:
    return Recordings()


def test_a_function_is_recorded_once_and_replayed_with_what_it_is_given(recordings: Recordings) -> None:
    doubled = CudaGraphed(lambda x: 2 * x, recordings)
    assert [result(doubled, torch.tensor([float(value)])).item() for value in (1, 5, 7)] == [2, 10, 14]
    assert recordings.made == 1


def test_a_recording_reads_and_writes_the_same_memory_each_time(recordings: Recordings) -> None:
    read: list[int] = []

    def add_one(x: Tensor) -> Tensor:
        read.append(x.data_ptr())
        return x + 1

    graphed = CudaGraphed(add_one, recordings)
    outputs = [result(graphed, torch.zeros(3)) for _ in range(3)]
    assert len(set(read)) == len({output.data_ptr() for output in outputs}) == 1


@pytest.mark.parametrize(
    "other",
    [torch.zeros(4), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, device="meta")],
    ids=["shape", "dtype", "device"],
)
def test_other_tensors_than_those_recorded_are_refused(recordings: Recordings, other: Tensor) -> None:
    graphed = CudaGraphed(torch.neg, recordings)
    graphed(torch.zeros(3))
    with pytest.raises(ValueError, match=r"recorded with \[\(\[3\], torch.float32"):
        graphed(other)


def test_a_recording_that_failed_is_made_again(recordings: Recordings) -> None:
    failing = iter([True, False, False])

    def fail_once(x: Tensor) -> Tensor:
        if next(failing):
            raise MemoryError("no room")
        return x + 1

    graphed = CudaGraphed(fail_once, recordings)
    with pytest.raises(MemoryError, match="no room"):
        graphed(torch.zeros(1))
    assert result(graphed, torch.zeros(1)).item() == 1


def test_what_may_not_be_recorded_is_run_as_it_is(recordings: Recordings) -> None:
    allowed = [True]
    first = CudaGraphed(lambda x: x + 1, recordings, lambda: allowed[0])
    late = CudaGraphed(lambda x: x + 2, recordings, lambda: allowed[0])
    first(torch.zeros(1))
    allowed[0] = False
    assert [result(graphed, torch.zeros(1)).item() for graphed in (first, late)] == [1, 2]
    assert recordings.made == 1


def test_an_error_in_a_capture_says_that_the_process_must_end(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **options: nullcontext())
    capture, runs = CudaGraphCapture(torch.device("cuda:0")), [0]

    def fail_in_capture() -> None:
        runs[0] += 1
        if runs[0] == 2:
            raise torch.OutOfMemoryError("no room")

    with (
        pytest.raises(CaptureFailed, match="this process must end; --no-graphs does without: no room") as caught,
        typed_out_of_memory("x"),
    ):
        capture(fail_in_capture)
    assert not isinstance(caught.value, EngineError)

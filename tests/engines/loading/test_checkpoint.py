from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from engines.errors import WeightsError
from engines.loading.checkpoint import Checkpoint, without_wrappers

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.tensor([1.0, 2.0]).bfloat16()}


class TouchOnLoad:
    """A pickle of it asks to run `touch` on a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def saved(path: Path, content: object = WEIGHTS) -> Path:
    torch.save(content, path)
    return path


def saved_safetensors(path: Path) -> Path:
    save_file(WEIGHTS, path)
    return path


def as_pickled(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def as_old(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_protocol_4(path: Path, content: object) -> None:
    torch.save(content, path, pickle_protocol=4)


def assert_holds(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> None:
    assert set(checkpoint) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint[name].dtype == tensor.dtype
        assert torch.equal(checkpoint[name], tensor)


@pytest.mark.parametrize("save", [saved, saved_safetensors])
def test_both_formats_are_read_whatever_the_file_is_called(save: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_holds(Checkpoint.open(save(tmp_path / "weights")), WEIGHTS)


@pytest.mark.parametrize("save", [saved, saved_safetensors])
def test_tensors_are_views_of_the_file(save: Callable[[Path], Path], tmp_path: Path) -> None:
    path = save(tmp_path / "weights")
    tensor = Checkpoint.open(path)["a.weight"]
    raw = path.read_bytes()
    at = raw.index(WEIGHTS["a.weight"].numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(24))
    assert tensor.abs().sum() == 0


def test_the_first_entry_that_is_there_counts_and_the_others_do_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "base.pt", {"generator": WEIGHTS, "critic": {"c": torch.ones(1)}, "step": 3})
    assert_holds(Checkpoint.open(path, ("generator", "critic")), WEIGHTS)


def test_a_state_dict_without_entries_is_taken_whole(tmp_path: Path) -> None:
    assert_holds(Checkpoint.open(saved(tmp_path / "vae.pth"), ("generator",)), WEIGHTS)


def test_tensors_can_be_renamed(tmp_path: Path) -> None:
    renamed = Checkpoint.open(saved(tmp_path / "weights.pt")).renamed(lambda name: f"x.{name}")
    assert_holds(renamed, {f"x.{name}": tensor for name, tensor in WEIGHTS.items()})


def test_two_tensors_that_get_one_name_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pt", {"model.a": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"weights\.pt holds a twice: as model\.a and as a"):
        Checkpoint.open(path).renamed(without_wrappers)


@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("model.blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight"),
        ("model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.ffn.0.bias", "blocks.0.ffn.0.bias"),
        ("blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight"),
    ],
)
def test_wrappers_are_taken_off_names(published: str, name: str) -> None:
    assert without_wrappers(published) == name


@pytest.mark.parametrize("percent", [0, 1, 50, 99])
@pytest.mark.parametrize("save", [saved, saved_safetensors])
def test_a_truncated_file_is_refused(save: Callable[[Path], Path], percent: int, tmp_path: Path) -> None:
    path = save(tmp_path / "weights")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * percent // 100])
    with pytest.raises(WeightsError, match=r"weights is (neither|cut short|damaged)"):
        Checkpoint.open(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_a_damaged_archive_breaks_the_file_is_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = saved(tmp_path_factory.getbasetemp() / "damaged.pt")
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(4, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        Checkpoint.open(path)
    except WeightsError as error:
        assert "damaged.pt" in str(error)  # noqa: PT017 - a byte of a tensor may change unnoticed.


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (saved, r"asks for code besides tensors \(posix\.system\); no code in it was executed"),
        (as_protocol_4, "no plain checkpoint .*; no code in it was executed"),
        (as_pickled, "is neither a safetensors file nor a zip archive"),
        (as_old, "is neither a safetensors file nor a zip archive"),
    ],
)
def test_code_in_a_pickle_is_refused_and_not_executed(
    save: Callable[[Path, object], object], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "evil.pt", {"generator": WEIGHTS, "hook": TouchOnLoad(tmp_path / "touched")})
    with pytest.raises(WeightsError, match=rf"evil\.pt.*{message}"):
        Checkpoint.open(tmp_path / "evil.pt", ("generator",))
    assert not (tmp_path / "touched").exists()


def test_code_that_the_scan_for_it_misses_is_not_executed_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.loading.checkpoint.get_unsafe_globals_in_checkpoint", lambda path: [])
    path = saved(tmp_path / "evil.pt", {"hook": TouchOnLoad(tmp_path / "touched")})
    with pytest.raises(WeightsError, match=r"evil\.pt .* no code in it was executed"):
        Checkpoint.open(path)
    assert not (tmp_path / "touched").exists()


def test_an_old_pickle_is_refused_with_the_remedy(tmp_path: Path) -> None:
    as_old(tmp_path / "old.pth", WEIGHTS)
    with pytest.raises(WeightsError, match=r"old\.pth .* before 1\.6 wrote it, load it there and save it again"):
        Checkpoint.open(tmp_path / "old.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pt cannot be read: No such file"):
        Checkpoint.open(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        Checkpoint.open(tmp_path)


def test_a_file_without_the_entry_is_refused_with_what_it_has(tmp_path: Path) -> None:
    path = saved(tmp_path / "lora.pt", {"generator_lora": WEIGHTS, "step": 3})
    with pytest.raises(WeightsError, match=r"not a tensor: generator_lora, step, and none of generator, model"):
        Checkpoint.open(path, ("generator", "model"))


def test_a_file_that_holds_no_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"list\.pt holds a list"):
        Checkpoint.open(saved(tmp_path / "list.pt", [torch.ones(1)]))
